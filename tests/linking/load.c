// The client of the ground truth: it knows which answer every one of its requests got.
//
//   load --truth FILE --connect ADDRESS:PORT [--connect ...] --requests M [options]
//
//   --connections N   kept open at once, on the addresses in turn
//   --pipeline K      requests sent together; the next ones when all are answered, or
//   --refill 1        as soon as one is
//   --path P          of the requests; several are chosen from at random
//   --varied 1        each request gets a path, a query and a field of its own
//   --header LINE     a further field; %Nx in it becomes N random hexadecimal digits
//   --body BYTES      POST, with a nonce at the start of the body;
//   --body-max BYTES  of a random size up to this one
//   --chunk BYTES     chunked instead of with a Content-Length
//   --slice BYTES     sent in pieces of this size, --slice-ms apart
//   --expect 1        the body waits for "100 Continue"
//   --http10 1        HTTP/1.0, one request per connection
//   --close 1         "Connection: close", one request per connection
//   --think-ms T      up to that long between an answer and the next request
//   --abort PERMILLE  of the requests are given up, up to --abort-ms after they began, half
//                     of the connections by FIN and half by RST
//   --timeout S       for the whole run
//
// One thread, epoll. One line of the truth file for each request, fields between tabs: the
// client's port, number of the connection, index of the request on it, the HAProxy's port,
// when the connection was opened, the request was sent and its exchange was over
// (CLOCK_MONOTONIC, ns; "sent" is taken before the call), nonce of the request, nonce of
// the response ("-": it has none; "gz:" and hexadecimal digits: a gzip body to look into),
// status, outcome (complete, aborted, closed), 1 if the response has "X-Local: 1".
//
// Prints one line of JSON. Exit status 0 when every request has an outcome.

#include "http.h"

#define MAX_PIPELINE 64
#define MAX_PATHS 16
#define MAX_HEADERS 8

struct pending {
    uint64_t sent_ns, nonce;
    long index;
};

struct connection {
    int fd; // -1: to be opened by the next request
    int is_connecting;
    int closes;          // after the response that is being read
    int status, is_local, in_body;
    int in_flight, first; // in `pending`
    int port;
    long number, index;
    uint64_t opened_ns, rests_until_ns, slice_at_ns, abort_at_ns;
    int waits_for_continue;
    size_t used;          // of `buffer`: an unfinished head
    size_t out_bytes, out_sent, out_allowed, out_room;
    char *out, *buffer;
    struct sockaddr_in *target;
    struct body body;
    struct pending pending[MAX_PIPELINE];
};

static struct sockaddr_in targets[16];
static const char *paths[MAX_PATHS], *headers[MAX_HEADERS];
static int target_count, path_count, header_count, poller;
static long connections = 1, requests, pipeline = 1, refill, varied, http10, closing, expects;
static long body_min, body_max, chunk, slice, slice_ms, think_ms, abort_permille, abort_ms;
static double timeout_s = 60;
static long begun, finished, complete, opened;
static FILE *truth;
static struct connection *all;

static void watch(struct connection *c, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

// Writes what became of the oldest request of the connection.
static void note(struct connection *c, const char *outcome)
{
    struct pending *p = &c->pending[c->first];
    char sent[17], received[17];
    int is_whole = !strcmp(outcome, "complete");
    uint64_t nonce = is_whole ? read_nonce(c->body.start, c->body.kept, 'r') : 0;
    size_t i;

    fprintf(truth, "%d\t%ld\t%ld\t%d\t%llu\t%llu\t%llu\t%s\t", c->port, c->number, p->index,
            ntohs(c->target->sin_port), (unsigned long long)c->opened_ns,
            (unsigned long long)p->sent_ns, (unsigned long long)now_ns(),
            nonce_text(p->nonce, sent));
    if (is_whole && c->body.kept > 2 && !memcmp(c->body.start, "\x1f\x8b", 2)) {
        fputs("gz:", truth);
        for (i = 0; i < c->body.kept; i++)
            fprintf(truth, "%02x", (unsigned char)c->body.start[i]);
    } else
        fputs(nonce_text(nonce, received), truth);
    fprintf(truth, "\t%d\t%s\t%d\n", is_whole ? c->status : 0, outcome, is_whole && c->is_local);
    c->first = (c->first + 1) % MAX_PIPELINE;
    c->in_flight--;
    finished++;
    complete += is_whole;
}

static void end_connection(struct connection *c, const char *outcome)
{
    while (c->in_flight)
        note(c, outcome);
    if (c->fd >= 0)
        close_socket(c->fd, !strcmp(outcome, "aborted") && random64() % 2);
    c->fd = -1;
    c->out_bytes = c->out_sent = c->out_allowed = c->used = 0;
    c->in_body = c->waits_for_continue = 0;
    c->abort_at_ns = c->slice_at_ns = 0;
}

static void open_connection(struct connection *c)
{
    int on = 1;
    struct sockaddr_in name;
    socklen_t size = sizeof name;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->opened_ns = now_ns();
    if (connect(c->fd, (struct sockaddr *)c->target, sizeof *c->target) < 0
        && errno != EINPROGRESS)
        die("connect");
    if (getsockname(c->fd, (struct sockaddr *)&name, &size) < 0)
        die("getsockname");
    c->port = ntohs(name.sin_port);
    c->number = opened++;
    c->index = 0;
    c->is_connecting = 1;
    watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

static char *put_field(char *to, const char *line)
{
    while (*line) {
        char *end;
        long digits = *line == '%' ? strtol(line + 1, &end, 10) : 0;
        if (digits > 0 && *end == 'x') {
            for (line = end + 1; digits > 0; digits--)
                *to++ = "0123456789abcdef"[random64() % 16];
        } else
            *to++ = *line++;
    }
    memcpy(to, "\r\n", 2);
    return to + 2;
}

static void add_request(struct connection *c)
{
    size_t size = body_min ? between(body_min, body_max) : 0, head_bytes;
    struct pending *p = &c->pending[(c->first + c->in_flight) % MAX_PIPELINE];
    const char *path = paths[random64() % path_count];
    char *at;
    int i;

    if (c->out_room < c->out_bytes + 2 * size + 4096) {
        c->out_room = 2 * (c->out_bytes + 2 * size + 4096);
        c->out = realloc(c->out, c->out_room);
        if (!c->out)
            die("realloc");
    }
    at = c->out + c->out_bytes;
    at += sprintf(at, "%s %s", size ? "POST" : "GET", path);
    if (varied)
        at += sprintf(at, "/%04llu?page=%llu", (unsigned long long)between(0, 9999),
                      (unsigned long long)between(0, 99));
    at += sprintf(at, " HTTP/1.%d\r\nHost: localhost\r\nUser-Agent: load\r\n", !http10);
    if (varied)
        at += sprintf(at, "X-Variant: %llu\r\n", (unsigned long long)between(0, 999999));
    for (i = 0; i < header_count; i++)
        at = put_field(at, headers[i]);
    if (closing)
        at += sprintf(at, "Connection: close\r\n");
    if (size && chunk)
        at += sprintf(at, "Transfer-Encoding: chunked\r\n");
    else if (size)
        at += sprintf(at, "Content-Length: %zu\r\n", size);
    if (size && expects)
        at += sprintf(at, "Expect: 100-continue\r\n");
    memcpy(at, "\r\n", 2);
    at += 2;
    head_bytes = at - c->out;
    p->nonce = 0;
    if (size) {
        char *content = malloc(size);
        if (!content)
            die("malloc");
        memset(content, 'y', size);
        p->nonce = random64();
        put_nonce(content, 'q', p->nonce);
        if (chunk)
            at = put_chunks(at, content, size, chunk);
        else {
            memcpy(at, content, size);
            at += size;
        }
        free(content);
    }
    c->out_bytes = at - c->out;
    c->out_allowed = c->out_bytes;
    if (size && expects) {
        c->out_allowed = head_bytes;
        c->waits_for_continue = 1;
    } else if (slice && c->out_allowed > head_bytes + NONCE_BYTES) {
        c->out_allowed = head_bytes + NONCE_BYTES;
        c->slice_at_ns = now_ns() + slice_ms * MS;
    }
    p->index = c->index++;
    p->sent_ns = now_ns();
    c->in_flight++;
    begun++;
}

// Sends what may be sent; returns -1 when the connection is broken.
static int flush_out(struct connection *c)
{
    while (c->out_sent < c->out_allowed) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_allowed - c->out_sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN)
                return -1;
            watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        c->out_sent += n;
    }
    if (c->out_sent == c->out_bytes)
        c->out_sent = c->out_bytes = c->out_allowed = 0;
    return 0;
}

static int is_sending(struct connection *c)
{
    return c->out_sent < c->out_bytes;
}

// Begins the next requests of a connection that is free for them.
static void feed(struct connection *c)
{
    long wanted = pipeline - c->in_flight;
    if (begun >= requests || is_sending(c) || wanted <= 0 || (c->in_flight && !refill))
        return;
    if (c->fd < 0)
        open_connection(c);
    for (; wanted > 0 && begun < requests; wanted--)
        add_request(c);
    if (happens(abort_permille))
        c->abort_at_ns = now_ns() + between(0, abort_ms * 1000) * 1000;
    if (!c->is_connecting && flush_out(c) < 0)
        end_connection(c, "closed");
}

// Reads the head in [head, end): 1 final, 0 interim, -1 none.
static int read_head(struct connection *c, const char *head, const char *end)
{
    const char *length;
    int is_http10;
    if (end - head < 13 || strncmp(head, "HTTP/1.", 7))
        return -1;
    c->status = atoi(head + 9);
    if (c->status < 100 || c->status > 599)
        return -1;
    if (c->status < 200)
        return 0;
    is_http10 = head[7] == '0';
    c->is_local = field_has(head, end, "x-local", "1");
    c->closes = field_has(head, end, "connection", "close")
                || (is_http10 && !field_has(head, end, "connection", "keep-alive"));
    length = find_field(head, end, "content-length");
    if (c->status == 204 || c->status == 304)
        begin_body(&c->body, NO_BODY, 0);
    else if (field_has(head, end, "transfer-encoding", "chunked"))
        begin_body(&c->body, CHUNKED, 0);
    else if (length)
        begin_body(&c->body, SIZED, strtoull(length, NULL, 10));
    else {
        begin_body(&c->body, UNTIL_CLOSE, 0);
        c->closes = 1;
    }
    c->in_body = 1;
    return 1;
}

// Takes one answer as complete; returns 0 when the connection is over with it.
static int finish_answer(struct connection *c)
{
    c->in_body = 0;
    note(c, "complete");
    if (c->closes || closing || http10) {
        end_connection(c, "closed");
        return 0;
    }
    if (!c->in_flight) {
        c->abort_at_ns = 0;
        if (think_ms)
            c->rests_until_ns = now_ns() + between(0, think_ms * 1000) * 1000;
    }
    return 1;
}

// Sends on, and takes an answer that came before its request was all sent; returns 0 when
// the connection is over.
static int go_on_sending(struct connection *c)
{
    if (flush_out(c) < 0) {
        end_connection(c, "closed");
        return 0;
    }
    if (c->in_body && c->body.is_done && !is_sending(c))
        return finish_answer(c);
    return 1;
}

// Reads the answers in the buffer; returns 0 when the connection is over.
static int read_answers(struct connection *c, const char *end)
{
    const char *at = c->buffer, *head_end;
    while (at < end || (c->in_body && c->body.is_done)) {
        if (c->in_body) {
            at = read_body(&c->body, at, end);
            if (!at) {
                end_connection(c, "closed");
                return 0;
            }
            if (!c->body.is_done)
                break;
            // An answer may be there before its request is all sent; then wait for that.
            if (c->in_flight == 1 && is_sending(c) && !c->waits_for_continue && !c->closes)
                break;
            if (!finish_answer(c))
                return 0;
            continue;
        }
        head_end = memmem(at, end - at, "\r\n\r\n", 4);
        if (!head_end)
            break;
        switch (c->in_flight ? read_head(c, at, head_end + 2) : -1) {
        case -1:
            end_connection(c, "closed");
            return 0;
        case 0:
            c->out_allowed = c->out_bytes;
        }
        c->waits_for_continue = 0;
        at = head_end + 4;
    }
    c->used = end - at;
    memmove(c->buffer, at, c->used);
    return 1;
}

static void receive(struct connection *c)
{
    ssize_t n = recv(c->fd, c->buffer + c->used, BUFFER_BYTES - c->used, 0);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        if (c->in_body && c->body.framing == UNTIL_CLOSE && n == 0)
            finish_answer(c);
        else
            end_connection(c, "closed");
        return;
    }
    if (!read_answers(c, c->buffer + c->used + n))
        return;
    if (c->used == BUFFER_BYTES || (c->out_sent < c->out_allowed && flush_out(c) < 0)) {
        end_connection(c, "closed");
        return;
    }
    if (!think_ms)
        feed(c);
}

static void handle(struct connection *c, uint32_t events)
{
    if (c->fd < 0)
        return;
    if (events & EPOLLOUT || (c->is_connecting && events & (EPOLLERR | EPOLLHUP))) {
        c->is_connecting = 0;
        if (!go_on_sending(c))
            return;
        if (c->out_sent == c->out_allowed)
            watch(c, EPOLLIN, EPOLL_CTL_MOD);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(c);
}

// Does what is due on a connection; returns when something will be next, 0 for never.
static uint64_t look_after(struct connection *c, uint64_t now)
{
    if (c->abort_at_ns && now >= c->abort_at_ns)
        end_connection(c, "aborted");
    if (c->fd >= 0 && c->slice_at_ns && now >= c->slice_at_ns && !c->is_connecting) {
        c->out_allowed += slice;
        c->slice_at_ns = now + slice_ms * MS;
        if (c->out_allowed >= c->out_bytes) {
            c->out_allowed = c->out_bytes;
            c->slice_at_ns = 0;
        }
        go_on_sending(c);
    }
    if (!c->in_flight && now >= c->rests_until_ns)
        feed(c);
    if (c->abort_at_ns && (!c->slice_at_ns || c->abort_at_ns < c->slice_at_ns))
        return c->abort_at_ns;
    if (c->slice_at_ns)
        return c->slice_at_ns;
    return c->in_flight || begun >= requests ? 0 : c->rests_until_ns;
}

static void run(void)
{
    uint64_t start_ns = now_ns();
    while (finished < requests) {
        struct epoll_event events[256];
        uint64_t now = now_ns(), next = now + 100 * MS, due;
        long i;
        int n;
        if ((now - start_ns) / 1e9 > timeout_s)
            break;
        for (i = 0; i < connections; i++)
            if ((due = look_after(&all[i], now)) && due < next)
                next = due;
        now = now_ns();
        n = epoll_wait(poller, events, 256, next <= now ? 0 : (int)((next - now + MS - 1) / MS));
        for (i = 0; i < n; i++)
            handle(events[i].data.ptr, events[i].events);
    }
    for (long i = 0; i < connections; i++)
        end_connection(&all[i], "unfinished");
    printf("{\"requests\": %ld, \"complete\": %ld, \"connections\": %ld, \"seconds\": %.3f}\n",
           finished, complete, opened, (now_ns() - start_ns) / 1e9);
}

static void read_options(int argc, char **argv)
{
    struct {
        const char *name;
        long *value;
    } numbers[] = {
        {"--requests", &requests}, {"--connections", &connections}, {"--pipeline", &pipeline},
        {"--refill", &refill}, {"--varied", &varied}, {"--body", &body_min},
        {"--body-max", &body_max}, {"--chunk", &chunk}, {"--slice", &slice},
        {"--slice-ms", &slice_ms}, {"--expect", &expects}, {"--http10", &http10},
        {"--close", &closing}, {"--think-ms", &think_ms}, {"--abort", &abort_permille},
        {"--abort-ms", &abort_ms},
    };
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
        if (!strcmp(name, "--connect") && target_count < 16)
            set_address(&targets[target_count++], value);
        else if (!strcmp(name, "--path") && path_count < MAX_PATHS)
            paths[path_count++] = value;
        else if (!strcmp(name, "--header") && header_count < MAX_HEADERS)
            headers[header_count++] = value;
        else if (!strcmp(name, "--truth"))
            truth = open_truth(value);
        else if (!strcmp(name, "--timeout"))
            timeout_s = atof(value);
        else {
            fprintf(stderr, "load: unknown option, or one too many: %s\n", name);
            exit(2);
        }
    }
    if (body_min && body_min < NONCE_BYTES)
        body_min = NONCE_BYTES;
    if (chunk && chunk < NONCE_BYTES)
        chunk = NONCE_BYTES;
    if (closing || http10)
        pipeline = 1;
    if (!path_count)
        paths[path_count++] = "/";
    if (!target_count || !truth || requests < 1 || connections < 1 || pipeline < 1
        || pipeline > MAX_PIPELINE || (pipeline > 1 && (expects || slice))) {
        fprintf(stderr, "load: see the top of load.c for the options\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(connections, sizeof *all);
    for (long i = 0; i < connections; i++) {
        all[i].fd = -1;
        all[i].buffer = malloc(BUFFER_BYTES);
        if (!all[i].buffer)
            die("malloc");
        all[i].target = &targets[i % target_count];
    }
    run();
    if (fclose(truth))
        die("the truth file");
    return finished == requests ? 0 : 1;
}
