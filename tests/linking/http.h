// What the load client and the backend of this folder have in common: a clock, random
// numbers, nonces, and a reader of HTTP/1 bodies that keeps the first bytes.
//
// A nonce is what tells one message from all others: "Nq:" (of a request) or "Nr:" (of a
// response) and 16 random hexadecimal digits, at the start of the body.

#ifndef LINKING_HTTP_H
#define LINKING_HTTP_H

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
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NONCE_BYTES 19
#define KEPT_BYTES 2048 // of each body; enough for a small one that is compressed
#define BUFFER_BYTES 65536
#define MS 1000000ull

static uint64_t random_state;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(3);
}

static uint64_t random64(void)
{
    while (!random_state)
        if (getrandom(&random_state, sizeof random_state, 0) < 0)
            die("getrandom");
    random_state ^= random_state >> 12; // xorshift64*
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 2685821657736338717ull;
}

// A number from `low` to `high`, both included.
static uint64_t between(uint64_t low, uint64_t high)
{
    return high <= low ? low : low + random64() % (high - low + 1);
}

static int happens(long permille)
{
    return permille > 0 && (long)(random64() % 1000) < permille;
}

static void put_nonce(char *at, char side, uint64_t nonce)
{
    char text[NONCE_BYTES + 1];
    snprintf(text, sizeof text, "N%c:%016llx", side, (unsigned long long)nonce);
    memcpy(at, text, NONCE_BYTES);
}

// Returns the nonce that a body begins with, 0 when it begins with none.
static uint64_t read_nonce(const char *body, size_t size, char side)
{
    char digits[17] = "";
    if (size < NONCE_BYTES || body[0] != 'N' || body[1] != side || body[2] != ':')
        return 0;
    memcpy(digits, body + 3, 16);
    return strtoull(digits, NULL, 16);
}

static const char *nonce_text(uint64_t nonce, char text[17])
{
    if (!nonce)
        return "-";
    snprintf(text, 17, "%016llx", (unsigned long long)nonce);
    return text;
}

enum framing { NO_BODY, SIZED, CHUNKED, UNTIL_CLOSE };
enum chunk_step { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, TRAILER };

struct body {
    enum framing framing;
    enum chunk_step step;
    int is_done;
    uint64_t left;      // of the body, or of the chunk
    size_t line_bytes;  // of the trailer line so far
    size_t kept;
    char start[KEPT_BYTES];
};

static void begin_body(struct body *b, enum framing framing, uint64_t size)
{
    b->framing = framing;
    b->step = CHUNK_SIZE;
    b->left = framing == CHUNKED ? 0 : size;
    b->line_bytes = b->kept = 0;
    b->is_done = framing == NO_BODY || (framing == SIZED && !size);
}

static void keep(struct body *b, const char *at, size_t n)
{
    size_t room = KEPT_BYTES - b->kept;
    n = n < room ? n : room;
    memcpy(b->start + b->kept, at, n);
    b->kept += n;
}

// Takes the body's bytes from [at, end) and returns where it stopped: at `end`, or where
// the body is done. NULL when the chunks cannot be read.
static const char *read_body(struct body *b, const char *at, const char *end)
{
    while (at < end && !b->is_done) {
        size_t n = end - at;
        if (b->framing != CHUNKED || b->step == CHUNK_DATA) {
            if (b->framing != UNTIL_CLOSE && n > b->left)
                n = b->left;
            keep(b, at, n);
            at += n;
            if (b->framing == UNTIL_CLOSE)
                continue;
            b->left -= n;
            if (b->left)
                continue;
            if (b->framing == SIZED)
                b->is_done = 1;
            else
                b->step = CHUNK_END;
            continue;
        }
        char c = *at++;
        switch (b->step) {
        case CHUNK_SIZE:
        case CHUNK_EXTENSION:
            if (c == '\n')
                b->step = b->left ? CHUNK_DATA : TRAILER;
            else if (c == ';' || c == '\r')
                b->step = CHUNK_EXTENSION;
            else if (b->step == CHUNK_SIZE) {
                const char *digits = "0123456789abcdef", *found = strchr(digits, c | 32);
                if (!c || !found)
                    return NULL;
                b->left = b->left << 4 | (found - digits);
            }
            break;
        case CHUNK_END:
            if (c == '\n')
                b->step = CHUNK_SIZE;
            break;
        default: // TRAILER
            if (c == '\n') {
                b->is_done = !b->line_bytes;
                b->line_bytes = 0;
            } else if (c != '\r')
                b->line_bytes++;
        }
    }
    return at;
}

// Appends `body` to `to` in chunks of up to `chunk` bytes; returns the end.
static char *put_chunks(char *to, const char *body, size_t size, size_t chunk)
{
    while (size) {
        size_t n = size < chunk ? size : chunk;
        to += sprintf(to, "%zx\r\n", n);
        memcpy(to, body, n);
        memcpy(to + n, "\r\n", 2);
        to += n + 2;
        body += n;
        size -= n;
    }
    memcpy(to, "0\r\n\r\n", 5);
    return to + 5;
}

// Returns the value of a field in the head [head, end), lines ended by CRLF, or NULL.
static const char *find_field(const char *head, const char *end, const char *name)
{
    size_t size = strlen(name);
    const char *line = head;
    while ((line = memchr(line, '\n', end - line)) && ++line < end)
        if ((size_t)(end - line) > size && !strncasecmp(line, name, size) && line[size] == ':') {
            for (line += size + 1; line < end && *line == ' '; line++)
                ;
            return line;
        }
    return NULL;
}

static int field_has(const char *head, const char *end, const char *name, const char *word)
{
    const char *value = find_field(head, end, name);
    return value && !strncasecmp(value, word, strlen(word));
}

static void set_address(struct sockaddr_in *to, const char *where)
{
    char address[64];
    const char *colon = strrchr(where, ':');
    if (!colon || (size_t)(colon - where) >= sizeof address) {
        fprintf(stderr, "not ADDRESS:PORT: %s\n", where);
        exit(2);
    }
    memcpy(address, where, colon - where);
    address[colon - where] = 0;
    to->sin_family = AF_INET;
    to->sin_port = htons(atoi(colon + 1));
    if (inet_pton(AF_INET, address, &to->sin_addr) != 1) {
        fprintf(stderr, "not an IPv4 address: %s\n", address);
        exit(2);
    }
}

// Closes with an RST instead of a FIN when asked to.
static void close_socket(int fd, int with_reset)
{
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    if (with_reset)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static FILE *open_truth(const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file)
        die(path);
    setvbuf(file, NULL, _IOFBF, 1 << 20);
    return file;
}

#endif
