// The servers of the ground truth: they know which answer they gave to which request.
//
//   backend --truth FILE --listen ADDRESS:PORT [--listen ...] [options]
//
//   --delay-ms T      up to that long between the request and its answer
//   --slow PERMILLE   of the answers take --slow-ms T instead
//   --size BYTES      of the answers, with a nonce at the start;
//   --size-max BYTES  of a random size up to this one
//   --chunked PERMILLE  of the answers are chunked
//   --close PERMILLE  of the answers end their connection ("Connection: close")
//   --drop PERMILLE   of the requests get no answer: the connection is closed, half of
//                     the time by FIN and half by RST
//   --refuse PERMILLE of the requests get a 503, with a nonce like any answer
//   --early 1         answer before the request's body has come
//   --header LINE     a further field of every answer
//
// One thread, epoll, HTTP/1.1 with keep-alive, one request at a time on a connection; a
// PROXY line (version 1) before the first is passed over. "Expect: 100-continue" gets its
// interim answer. Prints "ready" once it listens and runs until SIGTERM.
//
// One line of the truth file for each request of which the head came, fields between tabs:
// port of the server, port of the peer, number of the connection, index of the request on
// it, when the connection was accepted, the head read and the answer about to be sent
// (CLOCK_MONOTONIC, ns; for a dropped one: when it was dropped), nonce of the request,
// nonce of the response, status (0: none), outcome (answered; dropped, by plan; gone: the
// connection ended before all of the request had come or all of the answer was written).

#include "http.h"

#define MAX_LISTENERS 16
#define MAX_BYTES (1 << 20) // of an answer

enum state { READING_HEAD, READING_BODY, WAITING, SENDING };

struct connection {
    int fd;
    int is_listener, is_watched;
    uint32_t watched;
    int server_port, peer_port;
    long number, index;
    uint64_t opened_ns, head_ns, answered_ns, due_ns;
    uint64_t request_nonce, response_nonce;
    enum state state;
    int is_first, closes, is_answered, status, will_drop;
    size_t used, out_bytes, out_sent;
    char *out, *buffer;
    struct body body;
    struct connection *next, *previous; // of those that wait, see `waiting`
};

static const char *more_header;
static long delay_ms, slow, slow_ms, size_min, size_max, chunked, closing, dropping, refusing;
static long early;
static long accepted;
static int poller;
static FILE *truth;
static struct connection waiting = {.next = &waiting, .previous = &waiting};
static volatile sig_atomic_t is_stopping;
static char content[MAX_BYTES];

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    int operation = c->is_watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (c->is_watched && c->watched == events)
        return;
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        die("epoll_ctl");
    c->is_watched = 1;
    c->watched = events;
}

static void note(struct connection *c, const char *outcome)
{
    char received[17], sent[17];
    fprintf(truth, "%d\t%d\t%ld\t%ld\t%llu\t%llu\t%llu\t%s\t%s\t%d\t%s\n", c->server_port,
            c->peer_port, c->number, c->index, (unsigned long long)c->opened_ns,
            (unsigned long long)c->head_ns, (unsigned long long)c->answered_ns,
            nonce_text(c->request_nonce, received), nonce_text(c->response_nonce, sent),
            c->status, outcome);
    c->index++;
}

static void stop_waiting(struct connection *c)
{
    if (c->next) {
        c->next->previous = c->previous;
        c->previous->next = c->next;
        c->next = c->previous = NULL;
    }
}

static void drop(struct connection *c, int with_reset)
{
    stop_waiting(c);
    close_socket(c->fd, with_reset);
    free(c->buffer);
    free(c->out);
    free(c);
}

// The connection broke: says so of the request that it broke.
static void lose(struct connection *c)
{
    if (c->state != READING_HEAD) {
        c->request_nonce = read_nonce(c->body.start, c->body.kept, 'q');
        if (!c->answered_ns)
            c->answered_ns = now_ns();
        note(c, "gone");
    }
    drop(c, 0);
}

static void wait_to_answer(struct connection *c)
{
    uint64_t pause = happens(slow) ? slow_ms * MS : between(0, delay_ms * 1000) * 1000;
    c->state = WAITING;
    c->due_ns = pause ? now_ns() + pause : 0;
    c->next = &waiting;
    c->previous = waiting.previous;
    c->previous->next = waiting.previous = c;
    if (pause)
        watch(c, 0); // what follows stays in the socket; a broken connection is still told
}

static int send_interim(struct connection *c)
{
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    return send(c->fd, text, sizeof text - 1, MSG_NOSIGNAL) == sizeof text - 1 ? 0 : -1;
}

// Begins to read the request whose head is [head, end); returns -1 when it is none.
static int begin_request(struct connection *c, const char *head, const char *end)
{
    const char *length = find_field(head, end, "content-length");
    const char *line_end = memchr(head, '\r', end - head);
    int is_http10;
    if (line_end - head < 14 || strncmp(line_end - 8, "HTTP/1.", 7))
        return -1;
    is_http10 = line_end[-1] == '0';
    c->head_ns = now_ns();
    c->answered_ns = c->request_nonce = c->response_nonce = 0;
    c->is_answered = c->status = 0;
    c->closes = field_has(head, end, "connection", "close")
                || (is_http10 && !field_has(head, end, "connection", "keep-alive"));
    c->will_drop = happens(dropping);
    if (field_has(head, end, "transfer-encoding", "chunked"))
        begin_body(&c->body, CHUNKED, 0);
    else if (length && strtoull(length, NULL, 10))
        begin_body(&c->body, SIZED, strtoull(length, NULL, 10));
    else
        begin_body(&c->body, NO_BODY, 0);
    c->state = READING_BODY;
    if (find_field(head, end, "expect") && send_interim(c) < 0)
        return -1;
    if (early && !c->body.is_done)
        wait_to_answer(c);
    return 0;
}

static void build_answer(struct connection *c)
{
    size_t size = between(size_min, size_max);
    int is_chunked = happens(chunked);
    char *at;

    c->closes |= happens(closing);
    c->status = happens(refusing) ? 503 : 200;
    c->response_nonce = random64();
    put_nonce(content, 'r', c->response_nonce);
    c->out = malloc(size * 2 + 1024);
    if (!c->out)
        die("malloc");
    at = c->out + sprintf(c->out, "HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\n", c->status,
                          c->status == 200 ? "OK" : "Service Unavailable");
    if (more_header)
        at += sprintf(at, "%s\r\n", more_header);
    if (c->closes)
        at += sprintf(at, "Connection: close\r\n");
    if (is_chunked) {
        at += sprintf(at, "Transfer-Encoding: chunked\r\n\r\n");
        at = put_chunks(at, content, size, between(NONCE_BYTES, 4096));
    } else {
        at += sprintf(at, "Content-Length: %zu\r\n\r\n", size);
        memcpy(at, content, size);
        at += size;
    }
    c->out_bytes = at - c->out;
    c->out_sent = 0;
}

static int read_requests(struct connection *c, const char *end);

// The exchange is over. Goes on with what is in the buffer; returns -1 when the connection
// is to be let go, with nothing more to say about it.
static int finish(struct connection *c)
{
    c->request_nonce = read_nonce(c->body.start, c->body.kept, 'q');
    note(c, "answered");
    c->state = READING_HEAD;
    if (c->closes)
        return -1;
    watch(c, EPOLLIN);
    return read_requests(c, c->buffer + c->used);
}

// Returns -1 when the connection is gone, and this structure with it.
static int send_answer(struct connection *c)
{
    while (c->out_sent < c->out_bytes) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_bytes - c->out_sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) {
                lose(c);
                return -1;
            }
            watch(c, EPOLLOUT);
            return 0;
        }
        c->out_sent += n;
    }
    free(c->out);
    c->out = NULL;
    c->is_answered = 1;
    if (!c->body.is_done) { // an early answer
        c->state = READING_BODY;
        watch(c, EPOLLIN);
        if (read_requests(c, c->buffer + c->used) == 0)
            return 0;
    } else if (finish(c) == 0)
        return 0;
    if (c->state == READING_HEAD)
        drop(c, 0);
    else
        lose(c);
    return -1;
}

static void answer(struct connection *c)
{
    stop_waiting(c);
    c->answered_ns = now_ns();
    if (c->will_drop) {
        c->request_nonce = read_nonce(c->body.start, c->body.kept, 'q');
        note(c, "dropped");
        drop(c, random64() % 2);
        return;
    }
    build_answer(c);
    c->state = SENDING;
    send_answer(c);
}

// Reads requests from the buffer, whose bytes end at `end`, until one is to be answered;
// returns -1 when the connection is to be let go.
static int read_requests(struct connection *c, const char *end)
{
    const char *at = c->buffer, *head_end;
    int result = 0;
    while (at < end && result == 0 && c->state != WAITING && c->state != SENDING) {
        if (c->state == READING_BODY) {
            at = read_body(&c->body, at, end);
            if (!at)
                return -1;
            if (c->body.is_done)
                break;
            continue;
        }
        if (c->is_first && end - at >= 6 && !memcmp(at, "PROXY ", 6)) {
            const char *line_end = memchr(at, '\n', end - at);
            if (!line_end)
                break;
            at = line_end + 1;
            continue;
        }
        head_end = memmem(at, end - at, "\r\n\r\n", 4);
        if (!head_end)
            break;
        c->is_first = 0;
        result = begin_request(c, at, head_end + 2);
        at = head_end + 4;
        if (c->body.is_done)
            break;
    }
    c->used = end - at;
    memmove(c->buffer, at, c->used);
    if (result < 0)
        return -1;
    if (c->state == READING_BODY && c->body.is_done) {
        if (c->is_answered)
            return finish(c);
        wait_to_answer(c);
    }
    return 0;
}

static void receive(struct connection *c)
{
    ssize_t n = recv(c->fd, c->buffer + c->used, BUFFER_BYTES - c->used, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        lose(c);
        return;
    }
    if (read_requests(c, c->buffer + c->used + n) < 0 || c->used == BUFFER_BYTES) {
        if (c->state == READING_HEAD)
            drop(c, 0);
        else
            lose(c);
    }
}

static void handle(struct connection *c, uint32_t events)
{
    if (c->state == WAITING) { // only a broken connection is told
        if (events & (EPOLLHUP | EPOLLERR))
            lose(c);
    } else if (c->state == SENDING) {
        if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            send_answer(c);
    } else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(c);
}

static void accept_all(struct connection *listener)
{
    for (;;) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        int on = 1, fd;
        struct connection *c;

        fd = accept4(listener->fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        c = calloc(1, sizeof *c);
        if (!c || !(c->buffer = malloc(BUFFER_BYTES)))
            die("malloc");
        c->fd = fd;
        c->server_port = listener->server_port;
        c->peer_port = ntohs(peer.sin_port);
        c->number = accepted++;
        c->opened_ns = now_ns();
        c->is_first = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(c, EPOLLIN);
    }
}

static void add_listener(const char *where)
{
    struct sockaddr_in name = {0};
    struct connection *c = calloc(1, sizeof *c);
    int on = 1;
    if (!c)
        die("calloc");
    set_address(&name, where);
    c->is_listener = 1;
    c->server_port = ntohs(name.sin_port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&name, sizeof name) < 0 || listen(c->fd, 4096) < 0)
        die(where);
    watch(c, EPOLLIN);
}

static void stop(int signal_number)
{
    (void)signal_number;
    is_stopping = 1;
}

// Answers what is due; returns the milliseconds until something will be.
static int answer_due(void)
{
    uint64_t now = now_ns(), next = now + 1000 * MS;
    struct connection *c, *following;
    for (c = waiting.next; c != &waiting; c = following) {
        following = c->next;
        if (c->due_ns > now) {
            next = c->due_ns < next ? c->due_ns : next;
            continue;
        }
        answer(c);
    }
    now = now_ns();
    return next <= now ? 0 : (int)((next - now + MS - 1) / MS);
}

static void read_options(int argc, char **argv)
{
    struct {
        const char *name;
        long *value;
    } numbers[] = {
        {"--delay-ms", &delay_ms}, {"--slow", &slow}, {"--slow-ms", &slow_ms},
        {"--size", &size_min}, {"--size-max", &size_max}, {"--chunked", &chunked},
        {"--close", &closing}, {"--drop", &dropping}, {"--refuse", &refusing},
        {"--early", &early},
    };
    int listeners = 0;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        size_t k;
        for (k = 0; k < sizeof numbers / sizeof *numbers; k++)
            if (!strcmp(name, numbers[k].name)) {
                *numbers[k].value = atol(value);
                break;
            }
        if (k < sizeof numbers / sizeof *numbers)
            continue;
        if (!strcmp(name, "--listen")) {
            add_listener(value);
            listeners++;
        } else if (!strcmp(name, "--header"))
            more_header = value;
        else if (!strcmp(name, "--truth"))
            truth = open_truth(value);
        else {
            fprintf(stderr, "backend: unknown option %s\n", name);
            exit(2);
        }
    }
    if (size_min < NONCE_BYTES)
        size_min = NONCE_BYTES;
    if (!listeners || !truth || size_max > MAX_BYTES || size_min > MAX_BYTES) {
        fprintf(stderr, "backend: see the top of backend.c for the options\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct sigaction ending = {.sa_handler = stop};
    memset(content, 'x', sizeof content);
    poller = epoll_create1(EPOLL_CLOEXEC);
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    sigaction(SIGTERM, &ending, NULL);
    puts("ready");
    fflush(stdout);
    while (!is_stopping) {
        struct epoll_event events[256];
        int n = epoll_wait(poller, events, 256, answer_due());
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->is_listener)
                accept_all(c);
            else
                handle(c, events[i].events);
        }
    }
    if (fclose(truth))
        die("the truth file");
    return 0;
}
