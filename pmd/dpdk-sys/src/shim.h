/* What of DPDK is used, without its inline functions and its structures. lib.rs has the same declarations. */
#include <stdint.h>

struct hr_info {
    char name[64];
    char driver[64];
    uint8_t mac[8];
    uint16_t max_queues;
    uint16_t max_mtu;
    uint16_t mtu;
    uint16_t several; /* frames of several buffers can be sent */
};

struct hr_link {
    uint32_t speed;
    uint32_t up;
};

/* One buffer of a packet. */
struct hr_part {
    void *mbuf;
    uint64_t at;
    uint32_t len;
    uint32_t more;
};

struct hr_xstat {
    char name[64];
    uint64_t value;
};

int hr_init(int argc, char **argv);
const char *hr_error(void);
int hr_ports(uint16_t *ids, int most);
int hr_info(uint16_t port, struct hr_info *out);
int hr_link(uint16_t port, struct hr_link *out);
void *hr_pool(const char *name, void *base, uint64_t len, uint32_t frame, uint32_t n);
void *hr_heads(const char *name, uint32_t n);
void hr_pool_free(void *pool);
uint32_t hr_pool_out(void *pool);
int hr_start(uint16_t port, uint16_t queues, uint16_t rxd, uint16_t txd, uint16_t mtu, int promisc, void **pools);
int hr_stop(uint16_t port);
int hr_thread(void);
int hr_memory(uint64_t va, uint64_t len, int add);
uint16_t hr_receive(uint16_t port, uint16_t queue, void *pool, struct hr_part *parts, uint16_t most, uint16_t packets,
                    uint16_t *taken, uint16_t *missed);
void hr_free(void *mbuf);
void hr_drop(void *packet);
void *hr_external(void *heads, uint64_t at, uint32_t len, void *shared);
void hr_trim(void *mbuf, uint64_t at, uint32_t len);
int hr_chain(void *head, void *tail);
uint16_t hr_send(uint16_t port, uint16_t queue, void **packets, uint16_t n);
void hr_clean(uint16_t port, uint16_t queue);
void *hr_shared(uint32_t n);
void hr_shared_free(void *shared);
void *hr_shared_at(void *shared, uint32_t i);
int hr_shared_done(void *at);
int hr_xstats(uint16_t port, struct hr_xstat *out, int most);
