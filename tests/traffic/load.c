// A load client that sends an exact number of requests and costs little itself.
//
//   load --connect ADDRESS:PORT --requests M [--connections N] [--pipeline K] [--rate R]
//        [--host H] [--path P] [--numbered 1] [--body BYTES] [--close 1] [--timeout S]
//
// One thread, epoll, HTTP/1.1. Responses need a Content-Length (or no body at all).
// --numbered appends ?n=0000000000, counting up, so that requests can be told apart.
// --close opens a new connection for each request. --rate paces the starts, per second.
// Prints one line of JSON; exit status 0 when every request got a whole response.

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_BYTES 65536
#define MAX_PIPELINE 64
#define NUMBER_DIGITS 10
#define SUB_BUCKETS 32 // per power of two: latencies are right to 3 %

struct connection {
    int fd;              // -1: to be opened by the next request
    int is_connecting;
    int is_idle;         // stands in `idle`
    int closes;          // the current response says "Connection: close"
    size_t used;         // bytes of an unfinished response head
    size_t body_left;    // bytes of the current response's body still to come
    int in_body;
    int in_flight;       // requests sent or being sent, not answered
    int first;           // of these, in `started`
    uint64_t started[MAX_PIPELINE];
    size_t out_left;     // bytes of `out` still to be sent
    size_t out_sent;
    char *out;
    char *buffer;
};

static struct sockaddr_in target;
static char *request;
static size_t request_bytes, number_at;
static long connections = 1, requests, pipeline = 1, closing, numbered;
static double rate, timeout_s = 60;

static long begun, answered, failed, opened, body_total, statuses[6];
static uint64_t histogram[64 * SUB_BUCKETS], slowest, start_ns;
static struct connection **idle;
static long idle_count;
static int poller;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what)
{
    perror(what);
    exit(3);
}

static void watch(struct connection *c, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static int bucket_of(uint64_t ns)
{
    int power = 63 - __builtin_clzll(ns | SUB_BUCKETS);
    return (power - 5) * SUB_BUCKETS + (int)(ns >> (power - 5)) - SUB_BUCKETS;
}

static double percentile_us(double share)
{
    uint64_t wanted = (uint64_t)(share * answered), seen = 0;
    int i;
    for (i = 0; i < 58 * SUB_BUCKETS; i++) {
        seen += histogram[i];
        if (seen > wanted)
            return ((uint64_t)(i % SUB_BUCKETS + SUB_BUCKETS) << (i / SUB_BUCKETS)) / 1e3;
    }
    return slowest / 1e3;
}

static void rest(struct connection *c)
{
    if (!c->is_idle) {
        c->is_idle = 1;
        idle[idle_count++] = c;
    }
}

// The connection is over; whatever it still owed an answer to has failed.
static void lose(struct connection *c)
{
    failed += c->in_flight;
    c->in_flight = 0;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    rest(c);
}

static void open_connection(struct connection *c)
{
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    opened++;
    c->used = c->body_left = c->out_left = c->out_sent = 0;
    c->in_body = c->closes = c->first = 0;
    c->is_connecting = 1;
    if (connect(c->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS)
        die("connect");
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static int flush_out(struct connection *c)
{
    while (c->out_left) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_left, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                return -1;
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        c->out_sent += n;
        c->out_left -= n;
    }
    c->out_sent = 0;
    return 0;
}

// Send as many requests as the pipeline takes and the pace allows.
static void feed(struct connection *c, long allowed)
{
    if (c->fd < 0)
        open_connection(c);
    if (c->out_left)
        return; // its buffer is in use; more when that is sent
    while (c->in_flight < (closing ? 1 : pipeline) && begun < allowed) {
        char *at = c->out + c->out_left;
        memcpy(at, request, request_bytes);
        if (numbered) {
            char digits[NUMBER_DIGITS + 1];
            snprintf(digits, sizeof digits, "%010u", (unsigned)begun);
            memcpy(at + number_at, digits, NUMBER_DIGITS);
        }
        c->out_left += request_bytes;
        c->started[(c->first + c->in_flight) % MAX_PIPELINE] = now_ns();
        c->in_flight++;
        begun++;
    }
    if (!c->is_connecting && flush_out(c) < 0)
        lose(c);
}

static void note_answer(struct connection *c)
{
    uint64_t took = now_ns() - c->started[c->first];
    histogram[bucket_of(took)]++;
    if (took > slowest)
        slowest = took;
    c->first = (c->first + 1) % MAX_PIPELINE;
    c->in_flight--;
    answered++;
}

// Reads the head in [head, end); returns -1 when it is none.
static int read_head(struct connection *c, const char *head, const char *end)
{
    const char *line = head;
    int status;
    if (end - head < 13 || strncmp(head, "HTTP/1.", 7))
        return -1;
    status = atoi(head + 9);
    if (status < 200 || status > 599)
        return -1;
    statuses[status / 100]++;
    c->body_left = 0;
    while ((line = memchr(line, '\n', end - line)) && ++line < end) {
        if (!strncasecmp(line, "content-length:", 15))
            c->body_left = strtoul(line + 15, NULL, 10);
        else if (!strncasecmp(line, "transfer-encoding:", 18))
            return -1;
        else if (!strncasecmp(line, "connection: close", 17))
            c->closes = 1;
    }
    body_total += c->body_left;
    c->in_body = 1;
    return 0;
}

// One receive call per event: epoll says so again while there is more, and nobody hogs.
static void read_responses(struct connection *c)
{
    ssize_t n = recv(c->fd, c->buffer + c->used, BUFFER_BYTES - c->used, 0);
    char *at = c->buffer, *end;

    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        lose(c);
        return;
    }
    end = c->buffer + c->used + n;
    for (;;) {
        if (c->in_body) {
            size_t part = (size_t)(end - at) < c->body_left ? (size_t)(end - at) : c->body_left;
            at += part;
            c->body_left -= part;
            if (c->body_left)
                break;
            c->in_body = 0;
            if (!c->in_flight) {
                lose(c); // an answer that nobody asked for
                return;
            }
            note_answer(c);
            if (c->closes || closing) {
                lose(c);
                return;
            }
        } else {
            char *head_end = memmem(at, end - at, "\r\n\r\n", 4);
            if (!head_end)
                break;
            if (read_head(c, at, head_end + 2) < 0) {
                lose(c);
                return;
            }
            at = head_end + 4;
        }
    }
    c->used = end - at;
    memmove(c->buffer, at, c->used);
    if (c->used == BUFFER_BYTES)
        lose(c);
    else if (c->in_flight < pipeline)
        rest(c);
}

static void handle(struct connection *c, uint32_t events)
{
    if (c->is_connecting && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            lose(c);
            return;
        }
        c->is_connecting = 0;
    }
    if (events & EPOLLOUT) {
        if (flush_out(c) < 0) {
            lose(c);
            return;
        }
        if (!c->out_left)
            watch(c, EPOLLIN, EPOLL_CTL_MOD);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        read_responses(c);
}

static void build_request(const char *host, const char *path, long body)
{
    const char *form = body ? "POST" : "GET";
    size_t size = strlen(host) + strlen(path) + body + 512;
    char *number;
    request = malloc(size);
    request_bytes = snprintf(request, size, "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\n",
                             form, path, numbered ? "?n=0000000000" : "", host);
    if (closing)
        request_bytes += sprintf(request + request_bytes, "Connection: close\r\n");
    if (body)
        request_bytes += sprintf(request + request_bytes, "Content-Length: %ld\r\n", body);
    request_bytes += sprintf(request + request_bytes, "\r\n");
    memset(request + request_bytes, 'y', body);
    request_bytes += body;
    number = numbered ? strstr(request, "?n=") : NULL;
    number_at = number ? (size_t)(number - request) + 3 : 0;
}

static void set_target(const char *where)
{
    char address[64];
    const char *colon = strrchr(where, ':');
    if (!colon || (size_t)(colon - where) >= sizeof address) {
        fprintf(stderr, "load: not ADDRESS:PORT: %s\n", where);
        exit(2);
    }
    memcpy(address, where, colon - where);
    address[colon - where] = 0;
    target.sin_family = AF_INET;
    target.sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, address, &target.sin_addr) != 1) {
        fprintf(stderr, "load: not an IPv4 address: %s\n", address);
        exit(2);
    }
}

static void report(double seconds)
{
    printf("{\"requests\": %ld, \"responses\": %ld, \"errors\": %ld, \"connections\": %ld, "
           "\"seconds\": %.6f, \"body_bytes\": %ld, "
           "\"status_2xx\": %ld, \"status_3xx\": %ld, \"status_4xx\": %ld, \"status_5xx\": %ld, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f}\n",
           begun, answered, failed, opened, seconds, body_total, statuses[2], statuses[3],
           statuses[4], statuses[5], percentile_us(0.5), percentile_us(0.99),
           percentile_us(0.999), slowest / 1e3);
}

int main(int argc, char **argv)
{
    const char *host = "localhost", *path = "/";
    long body = 0, i;

    for (i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--connect")) set_target(value);
        else if (!strcmp(name, "--requests")) requests = atol(value);
        else if (!strcmp(name, "--connections")) connections = atol(value);
        else if (!strcmp(name, "--pipeline")) pipeline = atol(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--host")) host = value;
        else if (!strcmp(name, "--path")) path = value;
        else if (!strcmp(name, "--numbered")) numbered = atol(value);
        else if (!strcmp(name, "--body")) body = atol(value);
        else if (!strcmp(name, "--close")) closing = atol(value);
        else if (!strcmp(name, "--timeout")) timeout_s = atof(value);
        else {
            fprintf(stderr, "load: unknown option %s\n", name);
            return 2;
        }
    }
    if (!target.sin_port || requests < 1 || connections < 1 || pipeline < 1
        || pipeline > MAX_PIPELINE || argc % 2 == 0) {
        fprintf(stderr, "load: see the top of load.c for the options\n");
        return 2;
    }
    build_request(host, path, body);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    idle = calloc(connections, sizeof *idle);
    for (i = 0; i < connections; i++) {
        struct connection *c = calloc(1, sizeof *c);
        c->fd = -1;
        c->buffer = malloc(BUFFER_BYTES);
        c->out = malloc(request_bytes * pipeline);
        rest(c);
    }

    start_ns = now_ns();
    while (answered + failed < requests) {
        struct epoll_event events[256];
        double elapsed = (now_ns() - start_ns) / 1e9;
        long allowed = requests, woken = idle_count;
        int n, paced = 0;

        if (elapsed > timeout_s)
            break;
        if (rate > 0 && elapsed * rate + 1 < requests) {
            allowed = (long)(elapsed * rate) + 1;
            paced = 1;
        }
        // Take them from the front, so that all connections get their turn.
        for (i = 0; i < woken && begun < allowed; i++) {
            idle[i]->is_idle = 0;
            feed(idle[i], allowed);
        }
        memmove(idle, idle + i, (idle_count - i) * sizeof *idle);
        idle_count -= i;

        n = epoll_wait(poller, events, 256, paced ? 1 : 100);
        for (i = 0; i < n; i++)
            handle(events[i].data.ptr, events[i].events);
    }
    report((now_ns() - start_ns) / 1e9);
    return answered == requests ? 0 : 1;
}
