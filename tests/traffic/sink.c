// A backend that costs next to nothing: every request gets the same 200.
//
//   sink --listen ADDRESS:PORT [--listen ...] [--size BYTES]
//
// One thread, epoll, HTTP/1.1 with keep-alive and pipelining. Request bodies are read
// over by Content-Length; a chunked request is answered by closing. Prints "ready" once
// it listens and runs until it is killed.

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_BYTES 65536

struct connection {
    int fd;
    int is_listener;
    size_t used;       // bytes of an unfinished head at the start of `buffer`
    size_t body_left;  // bytes of the current request's body still to come
    size_t owed;       // responses not yet wholly sent
    size_t sent;       // bytes of the first of them that are sent
    char *buffer;
};

static char *response;
static size_t response_bytes;
static int poller;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void drop(struct connection *c)
{
    close(c->fd); // also takes it out of epoll
    free(c->buffer);
    free(c);
}

static void watch(struct connection *c, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void add_listener(const char *where)
{
    char address[64];
    const char *colon = strrchr(where, ':');
    struct sockaddr_in name = {.sin_family = AF_INET};
    struct connection *c = calloc(1, sizeof *c);
    int on = 1;

    if (!c || !colon || (size_t)(colon - where) >= sizeof address) {
        fprintf(stderr, "sink: not ADDRESS:PORT: %s\n", where);
        exit(2);
    }
    memcpy(address, where, colon - where);
    address[colon - where] = 0;
    name.sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, address, &name.sin_addr) != 1) {
        fprintf(stderr, "sink: not an IPv4 address: %s\n", address);
        exit(2);
    }
    c->is_listener = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&name, sizeof name) < 0 || listen(c->fd, 4096) < 0)
        die(where);
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

static void accept_all(struct connection *listener)
{
    for (;;) {
        int on = 1, fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        struct connection *c;
        if (fd < 0)
            return;
        c = calloc(1, sizeof *c);
        if (!c || !(c->buffer = malloc(BUFFER_BYTES)))
            die("malloc");
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

// All responses are alike, so what is still to be sent is two numbers. Returns -1 on error.
static int send_owed(struct connection *c)
{
    while (c->owed) {
        ssize_t n = send(c->fd, response + c->sent, response_bytes - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                return -1;
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        c->sent += n;
        if (c->sent == response_bytes) {
            c->sent = 0;
            c->owed--;
        }
    }
    return 0;
}

// Body bytes that follow the head in [head, end); -1 when they cannot be counted.
static long body_bytes(const char *head, const char *end)
{
    const char *line = head;
    while (line < end) {
        if (!strncasecmp(line, "content-length:", 15))
            return strtol(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18))
            return -1;
        line = memchr(line, '\n', end - line);
        if (!line)
            break;
        line++;
    }
    return 0;
}

// One receive call per event: epoll says so again while there is more, and nobody hogs.
// Returns -1 when the connection is to be closed.
static int read_requests(struct connection *c)
{
    ssize_t n = recv(c->fd, c->buffer + c->used, BUFFER_BYTES - c->used, 0);
    char *at = c->buffer, *end;

    if (n < 0)
        return errno == EAGAIN ? 0 : -1;
    if (n == 0)
        return -1;
    end = c->buffer + c->used + n;
    while (at < end) {
        char *head_end;
        long body;
        if (c->body_left) {
            size_t part = (size_t)(end - at) < c->body_left ? (size_t)(end - at) : c->body_left;
            at += part;
            c->body_left -= part;
            if (!c->body_left)
                c->owed++;
            continue;
        }
        head_end = memmem(at, end - at, "\r\n\r\n", 4);
        if (!head_end)
            break;
        body = body_bytes(at, head_end + 2);
        if (body < 0)
            return -1;
        at = head_end + 4;
        c->body_left = body;
        if (!body)
            c->owed++;
    }
    c->used = end - at;
    memmove(c->buffer, at, c->used);
    return c->used == BUFFER_BYTES ? -1 : send_owed(c);
}

int main(int argc, char **argv)
{
    size_t size = 64;
    int i, listeners = 0;

    for (i = 1; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "--size"))
            size = strtoul(argv[i + 1], NULL, 10);
    response = malloc(size + 256);
    response_bytes = sprintf(response,
                             "HTTP/1.1 200 OK\r\nServer: sink\r\nContent-Type: text/plain\r\n"
                             "Content-Length: %zu\r\n\r\n",
                             size);
    memset(response + response_bytes, 'x', size);
    response_bytes += size;

    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (i = 1; i + 1 < argc; i += 2)
        if (!strcmp(argv[i], "--listen")) {
            add_listener(argv[i + 1]);
            listeners++;
        }
    if (!listeners) {
        fprintf(stderr, "usage: sink --listen ADDRESS:PORT [--listen ...] [--size BYTES]\n");
        return 2;
    }
    puts("ready");
    fflush(stdout);

    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(poller, events, 256, -1);
        for (i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->is_listener) {
                accept_all(c);
                continue;
            }
            if (events[i].events & EPOLLOUT) {
                if (send_owed(c) < 0) {
                    drop(c);
                    continue;
                }
                if (!c->owed)
                    watch(c, EPOLLIN, EPOLL_CTL_MOD);
            }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && read_requests(c) < 0)
                drop(c);
        }
    }
}
