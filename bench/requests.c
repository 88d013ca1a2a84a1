// SPDX-License-Identifier: Apache-2.0
// The load of the ruler: exactly as many requests as it is told, over connections that are there already.
//
//   requests ADDRESS PORT CONNECTIONS BODY_BYTES
//
// Prints a JSON line when all connections are there. Then each line "N" of its standard input asks for N requests, each
// connection's next one as soon as it has its reply; a JSON line says when the last reply is there. None is in flight
// before or after, so that what the proxy did meanwhile is the cost of these N. Ends with its standard input.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 16 << 10, SCRATCH = 64 << 10, EVENTS = 256, SILENCE_MS = 20000 };

struct connection {
    int fd;
    char head[HEAD_MAX + 1];
    size_t head_length, request_sent;
    uint64_t body_left;
    bool reads_body, wants_out;
};

static int epoll_fd;
static char *request;
static size_t request_length;
static unsigned long to_ask, to_come;

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000;
}

static void fail(const char *what) {
    char why[64];
    snprintf(why, sizeof why, "%s", what);
    for (char *at = why; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') *at = ' ';
    printf("{\"why\": \"%s\"}\n", why);
    fflush(stdout);
    exit(1);
}

static void listen_for(struct connection *one, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = one};
    if (epoll_ctl(epoll_fd, operation, one->fd, &event) < 0) fail(strerror(errno));
}

static void send_rest(struct connection *one) {
    ssize_t sent = send(one->fd, request + one->request_sent, request_length - one->request_sent, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) fail(strerror(errno));
    if (sent > 0) one->request_sent += (size_t)sent;
    bool unsent = one->request_sent < request_length;
    if (unsent != one->wants_out) listen_for(one, unsent ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    one->wants_out = unsent;
}

static void ask(struct connection *one) {
    to_ask--;
    one->request_sent = 0;
    send_rest(one);
}

// Returns how many of these bytes belong to the head.
static size_t take_head(struct connection *one, const char *bytes, size_t length) {
    size_t before = one->head_length, room = HEAD_MAX - before, taken = length < room ? length : room;
    memcpy(one->head + before, bytes, taken);
    one->head_length += taken;
    one->head[one->head_length] = 0;
    char *end = strstr(one->head, "\r\n\r\n");
    if (!end) {
        if (one->head_length == HEAD_MAX) fail("a head without an end");
        return taken;
    }
    if (strncmp(one->head, "HTTP/1.1 200", 12)) fail(one->head);
    const char *declared = strcasestr(one->head, "\r\ncontent-length:");
    if (!declared || declared > end) fail("a reply without Content-Length");
    one->body_left = strtoull(declared + 17, NULL, 10);
    one->reads_body = true;
    one->head_length = 0;
    return (size_t)(end - one->head) + 4 - before;
}

static void receive(struct connection *one) {
    static char scratch[SCRATCH];
    ssize_t length = recv(one->fd, scratch, SCRATCH, 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0) fail(length ? strerror(errno) : "a connection was closed");
    size_t left = (size_t)length;
    if (!one->reads_body) left -= take_head(one, scratch, left);
    if (!one->reads_body) return;
    if (left > one->body_left) fail("more bytes than the reply has");
    one->body_left -= left;
    if (one->body_left) return;
    one->reads_body = false;
    to_come--;
    if (to_ask) ask(one);
}

static void handle_next(int limit_ms) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll_fd, events, EVENTS, limit_ms);
    if (count == 0) fail("no reply for 20 s");
    for (int i = 0; i < count; i++) {
        struct connection *one = events[i].data.ptr;
        if (events[i].events & EPOLLOUT) send_rest(one);
        if (events[i].events & ~(uint32_t)EPOLLOUT) receive(one);
    }
}

static void make_request(const char *host, const char *port, size_t bytes) {
    static const char before[] = "{\"model\":\"bench\",\"messages\":[{\"role\":\"user\",\"content\":\"", after[] = "\"}]}";
    size_t frame = sizeof before + sizeof after - 2;
    if (bytes < frame) bytes = frame;
    request = malloc(bytes + 256);
    if (!request) fail("no memory");
    int head = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\n"
                                "Content-Length: %zu\r\n\r\n", host, port, bytes);
    char *at = mempcpy(request + head, before, sizeof before - 1);
    memset(at, 'x', bytes - frame);
    memcpy(at + (bytes - frame), after, sizeof after - 1);
    request_length = (size_t)head + bytes;
}

static void open_one(struct connection *one, const char *host, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    inet_pton(AF_INET, host, &address.sin_addr);
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(one->fd, (struct sockaddr *)&address, sizeof address) < 0) fail(strerror(errno));
    if (fcntl(one->fd, F_SETFL, O_NONBLOCK) < 0) fail(strerror(errno));
    listen_for(one, EPOLLIN, EPOLL_CTL_ADD);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: requests ADDRESS PORT CONNECTIONS BODY_BYTES\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM); // never outlives the one that measures
    make_request(argv[1], argv[2], strtoul(argv[4], NULL, 10));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    unsigned long connections = strtoul(argv[3], NULL, 10);
    struct connection *all = calloc(connections, sizeof *all);
    if (!all) fail("no memory");
    for (unsigned long i = 0; i < connections; i++) open_one(&all[i], argv[1], argv[2]);
    printf("{\"connections\": %lu}\n", connections);
    fflush(stdout);

    char line[32];
    while (fgets(line, sizeof line, stdin)) {
        unsigned long requests = strtoul(line, NULL, 10);
        uint64_t began = now_us();
        to_ask = to_come = requests;
        for (unsigned long i = 0; i < connections && to_ask; i++) ask(&all[i]);
        while (to_come) handle_next(SILENCE_MS);
        printf("{\"requests\": %lu, \"seconds\": %.6f}\n", requests, (double)(now_us() - began) / 1e6);
        fflush(stdout);
    }
    return 0;
}
