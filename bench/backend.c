// SPDX-License-Identifier: Apache-2.0
// The engine's stand-in for measurements: an HTTP/1.1 server that costs next to nothing and paces its streams exactly.
//
//   backend PORT ADDRESSES REPLY_BYTES     listens on 127.0.0.1 .. 127.0.0.ADDRESSES, prints "ready"
//
// POST anything      a chat completion of REPLY_BYTES bytes. A prompt with "count=N rate=R" near its beginning is answered
//                    with a stream of N tokens, R a second; each carries the moment it was sent: @monotonic microseconds@.
// GET /health etc.   what routers ask of an engine before they send it requests.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 64 << 10, KEPT_BODY = 4 << 10, SCRATCH = 256 << 10, EVENTS = 512, TOKEN_MAX = 512 };
enum state { READS_HEAD, READS_BODY, READS_CHUNK_SIZE, READS_CHUNK, READS_TRAILER, STREAMS };

struct connection {
    int fd;
    enum state state;
    bool keep_alive, wants_out;
    char *head;           // the request's head so far; allocated only while it is incomplete
    size_t head_length;
    uint64_t body_left;   // of the body, or of the chunk that is being read
    unsigned line_length; // of the chunk-size line or trailer line that is being read
    char kept[KEPT_BODY + 1];
    size_t kept_length;
    char *unsent;         // what the socket did not take yet
    size_t unsent_length, unsent_from;
    bool close_when_sent;
    uint64_t tokens_left, interval_ns, due_ns;
    int heap_index;       // -1: no token is due
};

static struct connection **heap;
static int heap_size, heap_room;
static int epoll_fd, timer_fd;
static uint64_t timer_set_for;
static char scratch[SCRATCH];
static char *plain_reply;
static size_t plain_reply_length;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

// The heap of streams, the next due first.

static void heap_put(int index, struct connection *one) {
    heap[index] = one;
    one->heap_index = index;
}

static void heap_up(int index) {
    struct connection *one = heap[index];
    while (index > 0 && heap[(index - 1) / 2]->due_ns > one->due_ns) {
        heap_put(index, heap[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    heap_put(index, one);
}

static void heap_down(int index) {
    struct connection *one = heap[index];
    for (;;) {
        int child = 2 * index + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= one->due_ns) break;
        heap_put(index, heap[child]);
        index = child;
    }
    heap_put(index, one);
}

static void heap_add(struct connection *one) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        heap = realloc(heap, (size_t)heap_room * sizeof *heap);
        if (!heap) fail("realloc");
    }
    heap_put(heap_size++, one);
    heap_up(heap_size - 1);
}

static void heap_remove(struct connection *one) {
    int index = one->heap_index;
    if (index < 0) return;
    one->heap_index = -1;
    struct connection *last = heap[--heap_size];
    if (last == one) return;
    heap_put(index, last);
    heap_up(index);
    heap_down(last->heap_index);
}

static void set_timer(void) {
    uint64_t due = heap_size ? heap[0]->due_ns : 0;
    if (due == timer_set_for) return;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL) < 0) fail("timerfd_settime");
    timer_set_for = due;
}

// Connections.

static void listen_for(struct connection *one, uint32_t events) {
    struct epoll_event event = {.events = events | EPOLLRDHUP, .data.ptr = one};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, one->fd, &event) < 0) fail("epoll_ctl");
}

static void end(struct connection *one) {
    heap_remove(one);
    close(one->fd);
    free(one->head);
    free(one->unsent);
    free(one);
}

// Returns false if the connection is gone.
static bool send_bytes(struct connection *one, const char *bytes, size_t length) {
    ssize_t sent = 0;
    if (!one->unsent) {
        sent = send(one->fd, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            end(one);
            return false;
        }
        if (sent < 0) sent = 0;
        if ((size_t)sent == length) return true;
    }
    size_t before = one->unsent ? one->unsent_length - one->unsent_from : 0, rest = length - (size_t)sent;
    char *joined = malloc(before + rest);
    if (!joined) fail("malloc");
    if (before) memcpy(joined, one->unsent + one->unsent_from, before);
    memcpy(joined + before, bytes + sent, rest);
    free(one->unsent);
    one->unsent = joined;
    one->unsent_length = before + rest;
    one->unsent_from = 0;
    if (!one->wants_out) {
        one->wants_out = true;
        listen_for(one, EPOLLOUT);
    }
    return true;
}

static bool replied(struct connection *one) {
    one->state = READS_HEAD;
    if (one->keep_alive) return true;
    if (one->unsent) {
        one->close_when_sent = true;
        return true;
    }
    end(one);
    return false;
}

static bool send_json(struct connection *one, int status, const char *type, const char *body) {
    char reply[4096];
    int length = snprintf(reply, sizeof reply, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", status,
                          status == 200 ? "OK" : "Not Found", type, strlen(body), body);
    return send_bytes(one, reply, (size_t)length) && replied(one);
}

static bool send_token(struct connection *one, bool first) {
    char event[TOKEN_MAX], out[4 * TOKEN_MAX];
    int at = 0;
    if (first)
        at = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                                       "Transfer-Encoding: chunked\r\n\r\n");
    int length = snprintf(event, sizeof event,
                          "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
                          "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" @%llu@\"},\"logprobs\":null,"
                          "\"finish_reason\":%s,\"token_ids\":[1234]}]}\n\n",
                          (unsigned long long)(now_ns() / 1000), one->tokens_left == 1 ? "\"length\"" : "null");
    at += snprintf(out + at, sizeof out - (size_t)at, "%x\r\n%s\r\n", length, event);
    if (--one->tokens_left == 0)
        at += snprintf(out + at, sizeof out - (size_t)at, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    return send_bytes(one, out, (size_t)at);
}

static bool continue_stream(struct connection *one, bool first) {
    if (!send_token(one, first)) return false;
    if (one->tokens_left == 0) {
        if (!one->unsent) listen_for(one, EPOLLIN);
        return replied(one);
    }
    one->due_ns += one->interval_ns;
    if (!one->unsent) heap_add(one); // else the stream goes on when the reader has made room
    return true;
}

static bool begin_stream(struct connection *one, const char *asked) {
    unsigned long long count = 0, rate = 0;
    if (sscanf(asked, "count=%llu rate=%llu", &count, &rate) != 2 || !count || !rate)
        return send_json(one, 404, "application/json", "{\"error\":{\"message\":\"count=N rate=R\"}}");
    one->state = STREAMS;
    one->tokens_left = count;
    one->interval_ns = 1000000000u / rate;
    one->due_ns = now_ns();
    listen_for(one, 0);
    return continue_stream(one, true);
}

static bool answer_post(struct connection *one) {
    one->kept[one->kept_length] = 0;
    const char *asked = strstr(one->kept, "count=");
    if (asked) return begin_stream(one, asked);
    return send_bytes(one, plain_reply, plain_reply_length) && replied(one);
}

static bool answer_get(struct connection *one, const char *path) {
    static const char json[] = "application/json";
    if (!strncmp(path, "/health", 7) || !strncmp(path, "/ping", 5)) return send_json(one, 200, json, "");
    if (!strncmp(path, "/v1/models", 10))
        return send_json(one, 200, json,
                         "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1760000000,"
                         "\"owned_by\":\"vllm\",\"root\":\"bench\",\"parent\":null,\"max_model_len\":1048576}]}");
    if (!strncmp(path, "/metrics", 8))
        return send_json(one, 200, "text/plain; version=0.0.4",
                         "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"bench\"} 0\n"
                         "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"bench\"} 0\n");
    if (!strncmp(path, "/get_model_info", 15) || !strncmp(path, "/model_info", 11) || !strncmp(path, "/get_server_info", 16) ||
        !strncmp(path, "/server_info", 12))
        return send_json(one, 200, json,
                         "{\"model_path\":\"bench\",\"model_id\":\"bench\",\"served_model_name\":\"bench\",\"is_generation\":true}");
    if (!strncmp(path, "/version", 8)) return send_json(one, 200, json, "{\"version\":\"0.0.0\"}");
    return send_json(one, 404, json, "{\"detail\":\"Not Found\"}");
}

// The request, in the order in which its bytes come. Each part returns false if the connection is gone.

static bool begin_body(struct connection *one, const char *head) {
    one->keep_alive = strstr(head, " HTTP/1.1\r\n") && !strcasestr(head, "\r\nconnection: close");
    one->kept_length = 0;
    one->line_length = 0;
    if (!strncmp(head, "GET ", 4)) return answer_get(one, head + 4);
    if (strcasestr(head, "\r\nexpect: 100-continue") && !send_bytes(one, "HTTP/1.1 100 Continue\r\n\r\n", 25)) return false;
    const char *length = strcasestr(head, "\r\ncontent-length:");
    one->body_left = length ? strtoull(length + 17, NULL, 10) : 0;
    if (strcasestr(head, "\r\ntransfer-encoding: chunked")) {
        one->body_left = 0;
        one->state = READS_CHUNK_SIZE;
        return true;
    }
    one->state = READS_BODY;
    return one->body_left ? true : answer_post(one);
}

static size_t take_head(struct connection *one, const char *bytes, size_t length, bool *alive) {
    if (!one->head) {
        one->head = malloc(HEAD_MAX + 1);
        if (!one->head) fail("malloc");
        one->head_length = 0;
    }
    size_t before = one->head_length, room = HEAD_MAX - before, taken = length < room ? length : room;
    memcpy(one->head + before, bytes, taken);
    one->head_length += taken;
    char *found = memmem(one->head, one->head_length, "\r\n\r\n", 4);
    if (!found) {
        if (one->head_length == HEAD_MAX) {
            end(one);
            *alive = false;
        }
        return taken;
    }
    size_t head_length = (size_t)(found - one->head) + 4;
    char *head = one->head;
    one->head = NULL;
    head[head_length] = 0;
    *alive = begin_body(one, head);
    free(head);
    return head_length - before;
}

static size_t take_body(struct connection *one, const char *bytes, size_t length) {
    size_t taken = length < one->body_left ? length : (size_t)one->body_left;
    size_t room = KEPT_BODY - one->kept_length, kept = taken < room ? taken : room;
    memcpy(one->kept + one->kept_length, bytes, kept);
    one->kept_length += kept;
    one->body_left -= taken;
    return taken;
}

// Lines of the chunked coding: sizes between the chunks, trailers after the last one.
static bool take_chunk_byte(struct connection *one, char byte) {
    if (byte == '\r') return true;
    if (byte != '\n') {
        if (one->state == READS_CHUNK_SIZE) {
            int digit = byte >= '0' && byte <= '9' ? byte - '0' : (byte | 32) >= 'a' && (byte | 32) <= 'f' ? (byte | 32) - 'a' + 10 : -1;
            if (digit >= 0) one->body_left = one->body_left * 16 + (uint64_t)digit;
        }
        one->line_length++;
        return true;
    }
    bool empty = one->line_length == 0;
    one->line_length = 0;
    if (one->state == READS_TRAILER) return empty ? answer_post(one) : true;
    if (!empty) one->state = one->body_left ? READS_CHUNK : READS_TRAILER; // empty: the line's end after a chunk
    return true;
}

static void readable(struct connection *one) {
    ssize_t received = recv(one->fd, scratch, SCRATCH, 0);
    if (received < 0 && errno == EAGAIN) return;
    if (received <= 0) {
        end(one);
        return;
    }
    const char *at = scratch, *stop = scratch + received;
    bool alive = true;
    while (alive && at < stop) {
        size_t left = (size_t)(stop - at);
        switch (one->state) {
        case READS_HEAD: at += take_head(one, at, left, &alive); break;
        case READS_BODY:
            at += take_body(one, at, left);
            if (!one->body_left) alive = answer_post(one);
            break;
        case READS_CHUNK:
            at += take_body(one, at, left);
            if (!one->body_left) one->state = READS_CHUNK_SIZE;
            break;
        case READS_CHUNK_SIZE:
        case READS_TRAILER: alive = take_chunk_byte(one, *at++); break;
        case STREAMS: end(one); return; // a pipelined request behind a stream: nobody here sends that
        }
    }
}

static void writable(struct connection *one) {
    size_t left = one->unsent_length - one->unsent_from;
    ssize_t sent = send(one->fd, one->unsent + one->unsent_from, left, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) {
        end(one);
        return;
    }
    one->unsent_from += (size_t)sent;
    if ((size_t)sent < left) return;
    free(one->unsent);
    one->unsent = NULL;
    one->wants_out = false;
    if (one->close_when_sent) {
        end(one);
        return;
    }
    listen_for(one, one->state == STREAMS ? 0 : EPOLLIN);
    if (one->state == STREAMS) {
        one->due_ns = now_ns();
        heap_add(one);
    }
}

static void send_due(void) {
    uint64_t now = now_ns();
    while (heap_size && heap[0]->due_ns <= now) {
        struct connection *one = heap[0];
        heap_remove(one);
        continue_stream(one, false);
    }
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *one = calloc(1, sizeof *one);
        if (!one) fail("calloc");
        one->fd = fd;
        one->heap_index = -1;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = one};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) fail("epoll_ctl");
    }
}

static int open_listener(int port, int number) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(0x7f000000u + (uint32_t)number)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) fail("bind");
    if (listen(fd, 4096) < 0) fail("listen");
    return fd;
}

static void make_plain_reply(size_t bytes) {
    static const char before[] = "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench\","
                                 "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"";
    static const char after[] = "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":10,\"total_tokens\":110,"
                                "\"completion_tokens\":100}}";
    size_t frame = sizeof before + sizeof after - 2;
    if (bytes < frame) bytes = frame;
    plain_reply = malloc(bytes + 256);
    if (!plain_reply) fail("malloc");
    int head = sprintf(plain_reply, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", bytes);
    char *at = plain_reply + head;
    at = mempcpy(at, before, sizeof before - 1);
    memset(at, 'x', bytes - frame);
    memcpy(at + (bytes - frame), after, sizeof after - 1);
    plain_reply_length = (size_t)head + bytes;
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: backend PORT ADDRESSES REPLY_BYTES\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM); // never outlives the one that measures
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    make_plain_reply(strtoul(argv[3], NULL, 10));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    static struct connection timer_mark;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = &timer_mark};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    int addresses = atoi(argv[2]);
    struct connection *listeners = calloc((size_t)addresses + 1, sizeof *listeners);
    for (int number = 1; number <= addresses; number++) {
        struct connection *listener = &listeners[number];
        listener->fd = open_listener(atoi(argv[1]), number);
        event = (struct epoll_event){.events = EPOLLIN, .data.ptr = listener};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener->fd, &event);
    }
    puts("ready");
    fflush(stdout);
    struct epoll_event events[EVENTS];
    for (;;) {
        set_timer();
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *one = events[i].data.ptr;
            if (one == &timer_mark) continue;
            if (one >= listeners && one <= listeners + addresses) accept_all(one->fd);
            else if (events[i].events & EPOLLIN) readable(one);
            else if (events[i].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) end(one);
            else if (events[i].events & EPOLLOUT) writable(one);
        }
        send_due();
    }
}
