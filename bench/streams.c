// SPDX-License-Identifier: Apache-2.0
// The reader of many streams: opens them evenly over a while, measures for a while, holds them open until told to leave.
//
//   streams ADDRESS PORT STREAMS RATE OPEN_MS MEASURE_MS PROMPT_BYTES
//
// Prints a JSON line when all are open (the measuring begins), one when the measuring ends and one with percentiles; then
// keeps reading until its standard input ends. The backend writes into each token the moment at which it sent it, so the delay of every token
// on its way is known, and not only the time between two of them.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, EVENTS = 512, HOLD_S = 60, OPEN_LIMIT_US = 30000000 };
enum state { CONNECTS, WAITS, READS, FAILED };

struct stream {
    int fd;
    enum state state;
    uint64_t asked_us, last_us; // last: when its latest token came
    bool in_stamp;
    uint64_t stamp;
};

struct samples {
    uint32_t *values;
    size_t count, room;
};

static int epoll_fd;
static struct samples delays, gaps, first_bytes;
static uint64_t tokens, reads, failures;
static bool measuring;
static size_t open_streams;
static char first_failure[96] = "";
static char *request;
static size_t request_length;
static struct sockaddr_in address;

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000;
}

static void add(struct samples *samples, uint64_t value) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? 2 * samples->room : 1 << 16;
        samples->values = realloc(samples->values, samples->room * sizeof *samples->values);
        if (!samples->values) exit(1);
    }
    samples->values[samples->count++] = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

static int by_value(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static void print_percentiles(const char *name, struct samples *samples) {
    qsort(samples->values, samples->count, sizeof *samples->values, by_value);
    size_t count = samples->count;
    uint32_t *values = samples->values;
    printf("\"%s\": {\"p50\": %u, \"p90\": %u, \"p99\": %u, \"max\": %u}", name, count ? values[count / 2] : 0,
           count ? values[count * 9 / 10] : 0, count ? values[count * 99 / 100] : 0, count ? values[count - 1] : 0);
}

static void failed(struct stream *one, const char *why) {
    if (one->state == READS) open_streams--;
    if (one->state != FAILED) failures++;
    if (!first_failure[0]) snprintf(first_failure, sizeof first_failure, "%s", why);
    one->state = FAILED;
    close(one->fd);
}

static void open_one(struct stream *one) {
    int on = 1;
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    one->state = CONNECTS;
    if (connect(one->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        failed(one, strerror(errno));
        return;
    }
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = one};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, one->fd, &event);
}

static void ask(struct stream *one) {
    one->asked_us = now_us();
    if (send(one->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) {
        failed(one, "the request could not be sent");
        return;
    }
    one->state = WAITS;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, one->fd, &event);
}

static void take_token(struct stream *one, uint64_t now) {
    if (measuring) {
        tokens++;
        add(&delays, now > one->stamp ? now - one->stamp : 0);
        if (one->last_us) add(&gaps, now - one->last_us);
    }
    one->last_us = now;
}

// Finds "@digits@" across reads.
static void scan(struct stream *one, const char *at, const char *stop, uint64_t now) {
    while (at < stop) {
        if (!one->in_stamp) {
            at = memchr(at, '@', (size_t)(stop - at));
            if (!at) return;
            one->in_stamp = true;
            one->stamp = 0;
        } else if (*at == '@') {
            one->in_stamp = false;
            if (one->stamp) take_token(one, now);
        } else
            one->stamp = one->stamp * 10 + (uint64_t)(*at - '0');
        at++;
    }
}

static void receive(struct stream *one) {
    static char buffer[BUFFER];
    ssize_t length = recv(one->fd, buffer, BUFFER, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) {
        failed(one, length ? strerror(errno) : "the connection was closed before the stream's end");
        return;
    }
    uint64_t now = now_us();
    if (one->state == WAITS) {
        if (length < 12 || memcmp(buffer, "HTTP/1.1 200", 12)) {
            char status[32];
            snprintf(status, sizeof status, "answered '%.12s'", buffer);
            failed(one, status);
            return;
        }
        add(&first_bytes, now - one->asked_us);
        one->state = READS;
        open_streams++;
    }
    if (measuring) reads++;
    scan(one, buffer, buffer + length, now);
}

// Handles what comes until `until_us`.
static void run_until(uint64_t until_us) {
    struct epoll_event events[EVENTS];
    for (;;) {
        uint64_t now = now_us();
        if (now >= until_us) return;
        int count = epoll_wait(epoll_fd, events, EVENTS, (int)((until_us - now + 999) / 1000));
        for (int i = 0; i < count; i++) {
            struct stream *one = events[i].data.ptr;
            if (one->state == CONNECTS) ask(one);
            else if (one->state != FAILED) receive(one);
        }
    }
}

static void make_request(unsigned long count, unsigned long rate, size_t prompt_bytes) {
    request = malloc(prompt_bytes + 1024);
    char *body = malloc(prompt_bytes + 512);
    if (!request || !body) exit(1);
    size_t length = (size_t)sprintf(body, "{\"model\":\"bench\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"count=%lu rate=%lu ", count, rate);
    while (length + 4 < prompt_bytes) body[length++] = 'x';
    length += (size_t)sprintf(body + length, "\"}]}");
    request_length = (size_t)sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                                              "Content-Length: %zu\r\n\r\n%s", length, body);
    free(body);
}

int main(int argc, char **argv) {
    if (argc != 8) {
        fprintf(stderr, "usage: streams ADDRESS PORT STREAMS RATE OPEN_MS MEASURE_MS PROMPT_BYTES\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM); // never outlives the one that measures
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    size_t count = strtoul(argv[3], NULL, 10);
    unsigned long rate = strtoul(argv[4], NULL, 10);
    uint64_t open_us = strtoul(argv[5], NULL, 10) * 1000, measure_us = strtoul(argv[6], NULL, 10) * 1000;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &address.sin_addr);
    make_request(rate * (HOLD_S + (open_us + measure_us) / 1000000), rate, strtoul(argv[7], NULL, 10));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct stream *streams = calloc(count, sizeof *streams);

    uint64_t began = now_us();
    for (size_t i = 0; i < count; i++) {
        run_until(began + open_us * i / count);
        open_one(&streams[i]);
    }
    while (open_streams + failures < count && now_us() < began + open_us + OPEN_LIMIT_US) run_until(now_us() + 1000);
    run_until(now_us() + 200000); // what opening them cost is over
    printf("{\"open\": %zu, \"failed\": %llu, \"why\": \"%s\"}\n", open_streams, (unsigned long long)failures, first_failure);
    fflush(stdout);

    measuring = true;
    uint64_t measured_from = now_us();
    run_until(measured_from + measure_us);
    measuring = false;
    printf("{\"seconds\": %.6f, \"tokens\": %llu, \"reads\": %llu, \"open\": %zu, \"failed\": %llu, \"why\": \"%s\"}\n",
           (double)(now_us() - measured_from) / 1e6, (unsigned long long)tokens, (unsigned long long)reads, open_streams,
           (unsigned long long)failures, first_failure);
    fflush(stdout); // before the sorting, which takes a while
    printf("{");
    print_percentiles("delay_us", &delays);
    printf(", ");
    print_percentiles("gap_us", &gaps);
    printf(", ");
    print_percentiles("first_byte_us", &first_bytes);
    puts("}");
    fflush(stdout);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (poll(&input, 1, 0) == 0) run_until(now_us() + 20000);
    return 0;
}
