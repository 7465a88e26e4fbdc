/* DPDK's inline functions, and its structures, behind plain functions. */
#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_memory.h>

/* Buffers of a pool that a thread keeps to itself. */
#define CACHE 128

int hr_init(int argc, char **argv) {
    /* DPDK pins the thread that starts it, and threads inherit that. */
    cpu_set_t cpus;
    int saved = sched_getaffinity(0, sizeof(cpus), &cpus);
    int rc = rte_eal_init(argc, argv);
    if (saved == 0)
        sched_setaffinity(0, sizeof(cpus), &cpus);
    return rc;
}

const char *hr_error(void) { return rte_strerror(rte_errno); }

/* Calls of ethdev return their error, others leave it in rte_errno. */
static int failed(int rc) {
    if (rc < 0)
        rte_errno = -rc;
    return rc;
}

int hr_ports(uint16_t *ids, int most) {
    uint16_t id;
    int n = 0;
    RTE_ETH_FOREACH_DEV(id) {
        if (n < most)
            ids[n++] = id;
    }
    return n;
}

int hr_info(uint16_t port, struct hr_info *out) {
    struct rte_eth_dev_info info;
    struct rte_ether_addr mac;
    int rc = rte_eth_dev_info_get(port, &info);
    if (rc < 0)
        return failed(rc);
    memset(out, 0, sizeof(*out));
    rte_eth_dev_get_name_by_port(port, out->name);
    strncpy(out->driver, info.driver_name ? info.driver_name : "", sizeof(out->driver) - 1);
    if (rte_eth_macaddr_get(port, &mac) == 0)
        memcpy(out->mac, mac.addr_bytes, 6);
    out->max_queues = RTE_MIN(info.max_rx_queues, info.max_tx_queues);
    out->max_mtu = info.max_mtu;
    out->mtu = RTE_ETHER_MTU;
    rte_eth_dev_get_mtu(port, &out->mtu);
    out->several = !!(info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
    return 0;
}

int hr_link(uint16_t port, struct hr_link *out) {
    struct rte_eth_link link;
    int rc = rte_eth_link_get_nowait(port, &link);
    out->up = rc == 0 && link.link_status == RTE_ETH_LINK_UP;
    out->speed = rc == 0 && link.link_speed != RTE_ETH_SPEED_NUM_UNKNOWN ? link.link_speed : 0;
    return failed(rc);
}

/* A pool whose buffers lie in memory of the caller's, `frame` bytes each, headroom included. */
void *hr_pool(const char *name, void *base, uint64_t len, uint32_t frame, uint32_t n) {
    struct rte_pktmbuf_extmem memory = {
        .buf_ptr = base, .buf_iova = (rte_iova_t)(uintptr_t)base, .buf_len = len, .elt_size = frame};
    return rte_pktmbuf_pool_create_extbuf(name, n, CACHE, 0, frame, SOCKET_ID_ANY, &memory, 1);
}

/* Buffers without memory, for memory of others. */
void *hr_heads(const char *name, uint32_t n) {
    return rte_pktmbuf_pool_create(name, n, CACHE, 0, 0, SOCKET_ID_ANY);
}

void hr_pool_free(void *pool) { rte_mempool_free(pool); }

/* Buffers that are not at home. */
uint32_t hr_pool_out(void *pool) { return rte_mempool_in_use_count(pool); }

int hr_start(uint16_t port, uint16_t queues, uint16_t rxd, uint16_t txd, uint16_t mtu, int promisc, void **pools) {
    struct rte_eth_dev_info info;
    struct rte_eth_conf conf = {0};
    uint16_t i, current = 0;
    int rc = rte_eth_dev_info_get(port, &info);
    if (rc < 0)
        return failed(rc);
    if (queues > 1 && info.flow_type_rss_offloads) {
        conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
        conf.rx_adv_conf.rss_conf.rss_hf = info.flow_type_rss_offloads &
            (RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP);
    }
    conf.rxmode.offloads = info.rx_offload_capa & RTE_ETH_RX_OFFLOAD_SCATTER;
    conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
    rte_eth_dev_get_mtu(port, &current);
    if (mtu)
        conf.rxmode.mtu = mtu;
    else if (current)
        conf.rxmode.mtu = current;
    if ((rc = rte_eth_dev_configure(port, queues, queues, &conf)) < 0)
        return failed(rc);
    if ((rc = rte_eth_dev_adjust_nb_rx_tx_desc(port, &rxd, &txd)) < 0)
        return failed(rc);
    for (i = 0; i < queues; i++) {
        if ((rc = rte_eth_rx_queue_setup(port, i, rxd, rte_eth_dev_socket_id(port), NULL, pools[i])) < 0)
            return failed(rc);
        if ((rc = rte_eth_tx_queue_setup(port, i, txd, rte_eth_dev_socket_id(port), NULL)) < 0)
            return failed(rc);
    }
    if ((rc = rte_eth_dev_start(port)) < 0)
        return failed(rc);
    /* Not every device has these. */
    if (promisc)
        rte_eth_promiscuous_enable(port);
    return 0;
}

int hr_stop(uint16_t port) { return failed(rte_eth_dev_stop(port)); }

int hr_thread(void) { return rte_lcore_id() == LCORE_ID_ANY ? rte_thread_register() : 0; }

/* Lets DPDK's devices reach memory, or no longer. */
int hr_memory(uint64_t va, uint64_t len, int add) {
    struct rte_eth_dev_info info;
    uint16_t id;
    size_t page = sysconf(_SC_PAGESIZE);
    void *at = (void *)(uintptr_t)va;
    int rc = 0;
    if (add && (rc = rte_extmem_register(at, len, NULL, 0, page)) < 0 && rte_errno != EEXIST)
        return rc;
    RTE_ETH_FOREACH_DEV(id) {
        if (rte_eth_dev_info_get(id, &info) < 0 || info.device == NULL)
            continue;
        rc = add ? rte_dev_dma_map(info.device, at, va, len) : rte_dev_dma_unmap(info.device, at, va, len);
        /* One that needs no mapping has none; one of the same container has it already. */
        if (add && rc < 0 && rte_errno != ENOTSUP && rte_errno != EEXIST) {
            int cause = rte_errno;
            rte_extmem_unregister(at, len);
            rte_errno = cause;
            return rc;
        }
    }
    if (!add)
        rte_extmem_unregister(at, len);
    return 0;
}

/* A packet that lies in buffers of another pool (another port's, on a software device) is copied. */
static struct rte_mbuf *own(struct rte_mbuf *packet, struct rte_mempool *pool) {
    struct rte_mbuf *m, *copy;
    for (m = packet; m != NULL && m->pool == pool; m = m->next)
        ;
    if (m == NULL)
        return packet;
    copy = rte_pktmbuf_copy(packet, pool, 0, UINT32_MAX);
    rte_pktmbuf_free(packet);
    return copy;
}

uint16_t hr_receive(uint16_t port, uint16_t queue, void *pool, struct hr_part *parts, uint16_t most, uint16_t packets,
                    uint16_t *taken, uint16_t *missed) {
    struct rte_mbuf *burst[64], *m, *next;
    uint16_t i, n = 0, got = rte_eth_rx_burst(port, queue, burst, RTE_MIN(packets, 64));
    *taken = *missed = 0;
    for (i = 0; i < got; i++) {
        struct rte_mbuf *packet = own(burst[i], pool);
        if (packet == NULL || n + packet->nb_segs > most) {
            rte_pktmbuf_free(packet);
            (*missed)++;
            continue;
        }
        for (m = packet; m != NULL; m = next) {
            next = m->next;
            parts[n].mbuf = m;
            parts[n].at = rte_pktmbuf_mtod(m, uintptr_t);
            parts[n].len = m->data_len;
            parts[n].more = next != NULL;
            m->next = NULL;
            m->nb_segs = 1;
            n++;
        }
        (*taken)++;
    }
    return n;
}

void hr_free(void *mbuf) { rte_pktmbuf_free_seg(mbuf); }

void hr_drop(void *packet) { rte_pktmbuf_free(packet); }

struct shared {
    struct rte_mbuf_ext_shared_info info;
    uint32_t done;
} __rte_cache_aligned;

static void back(void *addr, void *opaque) {
    struct shared *shared = opaque;
    (void)addr;
    /* Pairs with hr_shared_done: the device reads no more. */
    __atomic_store_n(&shared->done, 1, __ATOMIC_RELEASE);
}

/* An mbuf over memory of others; hr_shared_done tells when DPDK is done with it. */
void *hr_external(void *heads, uint64_t at, uint32_t len, void *place) {
    struct shared *shared = place;
    struct rte_mbuf *m = rte_pktmbuf_alloc(heads);
    if (m == NULL)
        return NULL;
    shared->done = 0;
    shared->info.free_cb = back;
    shared->info.fcb_opaque = shared;
    rte_mbuf_ext_refcnt_set(&shared->info, 1);
    rte_pktmbuf_attach_extbuf(m, (void *)(uintptr_t)at, at, len, &shared->info);
    m->data_off = 0;
    m->data_len = len;
    m->pkt_len = len;
    return m;
}

/* Where in its buffer the packet begins, and how long it is. */
void hr_trim(void *mbuf, uint64_t at, uint32_t len) {
    struct rte_mbuf *m = mbuf;
    m->data_off = at - (uintptr_t)m->buf_addr;
    m->data_len = len;
    m->pkt_len = len;
    m->ol_flags &= RTE_MBUF_F_EXTERNAL | RTE_MBUF_F_INDIRECT;
}

int hr_chain(void *head, void *tail) { return rte_pktmbuf_chain(head, tail); }

uint16_t hr_send(uint16_t port, uint16_t queue, void **packets, uint16_t n) {
    return rte_eth_tx_burst(port, queue, (struct rte_mbuf **)packets, n);
}

void hr_clean(uint16_t port, uint16_t queue) { rte_eth_tx_done_cleanup(port, queue, 0); }

void *hr_shared(uint32_t n) {
    void *shared = NULL;
    return posix_memalign(&shared, RTE_CACHE_LINE_SIZE, n * sizeof(struct shared)) == 0 ? shared : NULL;
}

void hr_shared_free(void *shared) { free(shared); }

void *hr_shared_at(void *shared, uint32_t i) { return (struct shared *)shared + i; }

int hr_shared_done(void *at) { return __atomic_load_n(&((struct shared *)at)->done, __ATOMIC_ACQUIRE); }

int hr_xstats(uint16_t port, struct hr_xstat *out, int most) {
    struct rte_eth_xstat_name names[256];
    struct rte_eth_xstat values[256];
    int i, n = rte_eth_xstats_get_names(port, names, 256), m = rte_eth_xstats_get(port, values, 256);
    if (n < 0 || m < 0 || n > 256 || m > 256)
        return 0;
    for (i = 0; i < m && i < most; i++) {
        memcpy(out[i].name, names[values[i].id].name, sizeof(out[i].name));
        out[i].name[sizeof(out[i].name) - 1] = 0;
        out[i].value = values[i].value;
    }
    return RTE_MIN(m, most);
}
