// A cache line's way to the other core and back, in ns: two pinned threads pass a number to and fro.
//
//   roundtrip CPU CPU      prints the median of 11 runs of 10000 round trips
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { TRIPS = 10000, RUNS = 11 };
static _Alignas(128) atomic_uint ball;

static void pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) {
        perror("roundtrip: sched_setaffinity");
        exit(1);
    }
}

static void *answer(void *cpu) {
    pin(*(int *)cpu);
    for (unsigned i = 0; i < RUNS * TRIPS; i++) {
        while (atomic_load_explicit(&ball, memory_order_acquire) != 2 * i + 1)
            ;
        atomic_store_explicit(&ball, 2 * i + 2, memory_order_release);
    }
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: roundtrip CPU CPU\n");
        return 2;
    }
    int here = atoi(argv[1]), there = atoi(argv[2]);
    pthread_t other;
    if (pthread_create(&other, NULL, answer, &there))
        return 1;
    pin(here);
    double runs[RUNS];
    for (unsigned r = 0; r < RUNS; r++) {
        double began = now();
        for (unsigned i = r * TRIPS; i < (r + 1) * TRIPS; i++) {
            atomic_store_explicit(&ball, 2 * i + 1, memory_order_release);
            while (atomic_load_explicit(&ball, memory_order_acquire) != 2 * i + 2)
                ;
        }
        runs[r] = (now() - began) / TRIPS;
    }
    pthread_join(other, NULL);
    qsort(runs, RUNS, sizeof *runs, ascending);
    printf("%.0f\n", runs[RUNS / 2]);
    return 0;
}
