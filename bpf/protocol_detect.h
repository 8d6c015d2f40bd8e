// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Tell HTTP from everything else by the first bytes that went one way.
//
// Pure on purpose: no map, no helper and no kernel type, so the unit tests compile
// this same header for the host. The bytes are held in two integers (little-endian, as
// memory has them), because the verifier takes shifts and refuses most indexing.

#define PROBE_BYTES 16

enum protocol {
    PROTOCOL_OTHER = 0,
    PROTOCOL_HTTP1_REQUEST = 1,
    PROTOCOL_HTTP1_RESPONSE = 2,
    PROTOCOL_HTTP2 = 3,
    PROTOCOL_PROXY = 4,     // a PROXY protocol header stands before the request
    PROTOCOL_UNDECIDED = 5, // too few bytes so far
};

// The first bytes of one flow; those not known yet are 0.
struct probe {
    unsigned long long low;  // bytes 0 to 7
    unsigned long long high; // bytes 8 to 15
};

// Add `more` behind the `length` bytes that are there already.
static __always_inline void probe_append(struct probe *probe, unsigned int length,
                                         const struct probe *more)
{
    unsigned int bits = 8 * (length & 7);
    if (length == 0) {
        *probe = *more;
    } else if (length < 8) {
        probe->low |= more->low << bits;
        probe->high = more->low >> (64 - bits) | more->high << bits;
    } else if (length < PROBE_BYTES) {
        probe->high |= more->low << bits;
    }
}

#define WORD(a, b, c, d, e, f, g, h)                                                               \
    ((unsigned long long)(a) | (unsigned long long)(b) << 8 | (unsigned long long)(c) << 16 |      \
     (unsigned long long)(d) << 24 | (unsigned long long)(e) << 32 |                               \
     (unsigned long long)(f) << 40 | (unsigned long long)(g) << 48 |                               \
     (unsigned long long)(h) << 56)

// Whether nothing that is known of the probe speaks against it beginning with the
// `size` bytes of (low, high).
static __always_inline int may_begin_with(const struct probe *probe, const struct probe *known,
                                          unsigned long long low, unsigned long long high,
                                          unsigned int size)
{
    unsigned long long low_mask = size >= 8 ? ~0ULL : (1ULL << (8 * (size & 7))) - 1;
    unsigned long long high_mask = size <= 8 ? 0 : (1ULL << (8 * (size & 7))) - 1;
    return (((probe->low ^ low) & low_mask & known->low) |
            ((probe->high ^ high) & high_mask & known->high)) == 0;
}

// Eight bytes at a time, because a loop over bytes makes the verifier's work explode.
#define EACH_BYTE 0x0101010101010101ULL
#define TOP_BITS (EACH_BYTE * 0x80)
#define LOW_BITS (EACH_BYTE * 0x7f)

// The top bit of each byte that equals `c`.
static __always_inline unsigned long long bytes_equal(unsigned long long word, unsigned char c)
{
    unsigned long long t = word ^ (EACH_BYTE * c);
    return ~(((t & LOW_BITS) + LOW_BITS) | t) & TOP_BITS;
}

// The top bit of each byte that a method is made of: letters and hyphens.
static __always_inline unsigned long long method_bytes(unsigned long long word)
{
    unsigned long long lower = (word | (EACH_BYTE * 0x20)) & LOW_BITS;
    unsigned long long from_a = lower + EACH_BYTE * (0x80 - 'a');
    unsigned long long past_z = lower + EACH_BYTE * (0x80 - 'z' - 1);
    return (from_a & ~past_z & ~word & TOP_BITS) | bytes_equal(word, '-');
}

// The first byte of a request target in origin, asterisk or absolute form (RFC 9112
// section 3.2). Behind a token and one space, this is what separates a request line
// from the commands of other line-based protocols. `unit` is 1 in the byte to look at.
static __always_inline enum protocol judge_target(unsigned long long word, unsigned long long known,
                                                  unsigned long long unit)
{
    unsigned long long byte = word & (unit * 0xff);
    if ((known & unit) == 0)
        return PROTOCOL_UNDECIDED;
    return byte == unit * '/' || byte == unit * '*' || byte == unit * 'h' || byte == unit * 'H'
               ? PROTOCOL_HTTP1_REQUEST
               : PROTOCOL_OTHER;
}

// A request line: token, space, target.
static __always_inline enum protocol judge_request(const struct probe *probe,
                                                   const struct probe *known)
{
    unsigned long long letters = method_bytes(probe->low);
    unsigned long long space = bytes_equal(probe->low, ' ');
    unsigned long long before;
    if (space) {
        space &= -space;    // the first one
        before = space - 1; // covers the top bits of the bytes in front of it
        if (space == 0x80 || (letters & before) != (TOP_BITS & before))
            return PROTOCOL_OTHER;
        if (space >> 63)
            return judge_target(probe->high, known->high, 1);
        return judge_target(probe->low, known->low, space << 1);
    }
    if (letters != (TOP_BITS & known->low))
        return PROTOCOL_OTHER;
    letters = method_bytes(probe->high);
    space = bytes_equal(probe->high, ' ');
    if (!space)
        return letters == (TOP_BITS & known->high) && known->high >> 63 == 0 ? PROTOCOL_UNDECIDED
                                                                             : PROTOCOL_OTHER;
    space &= -space;
    before = space - 1;
    if ((letters & before) != (TOP_BITS & before))
        return PROTOCOL_OTHER;
    return space >> 63 ? PROTOCOL_OTHER : judge_target(probe->high, known->high, space << 1);
}

// `length` is the number of bytes known so far, at most PROBE_BYTES.
static __always_inline enum protocol detect_protocol(const struct probe *probe, unsigned int length)
{
    struct probe known; // all ones where a byte is known
    if (length == 0)
        return PROTOCOL_UNDECIDED;
    known.low = length >= 8 ? ~0ULL : (1ULL << (8 * (length & 7))) - 1;
    known.high = length >= 16 ? ~0ULL : length <= 8 ? 0 : (1ULL << (8 * (length & 7))) - 1;

    // Status line, RFC 9112 section 4.
    if (may_begin_with(probe, &known, WORD('H', 'T', 'T', 'P', '/', '1', '.', 0), 0, 7))
        return length >= 7 ? PROTOCOL_HTTP1_RESPONSE : PROTOCOL_UNDECIDED;

    // Connection preface, RFC 9113 section 3.4.
    if (may_begin_with(probe, &known, WORD('P', 'R', 'I', ' ', '*', ' ', 'H', 'T'),
                       WORD('T', 'P', '/', '2', 0, 0, 0, 0), 12))
        return length >= 12 ? PROTOCOL_HTTP2 : PROTOCOL_UNDECIDED;

    // PROXY protocol, version 1 ("PROXY TCP4 …", "PROXY UNKNOWN") and version 2.
    if (may_begin_with(probe, &known, WORD('P', 'R', 'O', 'X', 'Y', ' ', 'T', 'C'), 0, 8))
        return length >= 8 ? PROTOCOL_PROXY : PROTOCOL_UNDECIDED;
    if (may_begin_with(probe, &known, WORD('P', 'R', 'O', 'X', 'Y', ' ', 'U', 'N'), 0, 8))
        return length >= 8 ? PROTOCOL_PROXY : PROTOCOL_UNDECIDED;
    if (may_begin_with(probe, &known, WORD('\r', '\n', '\r', '\n', 0, '\r', '\n', 'Q'),
                       WORD('U', 'I', 'T', '\n', 0, 0, 0, 0), 12))
        return length >= 12 ? PROTOCOL_PROXY : PROTOCOL_UNDECIDED;

    // CONNECT names an authority, which may begin with anything that a host can.
    if (may_begin_with(probe, &known, WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', ' '), 0, 8))
        return length >= 8 ? PROTOCOL_HTTP1_REQUEST : PROTOCOL_UNDECIDED;

    // One empty line may stand before the request line (RFC 9112 section 2.2).
    if (may_begin_with(probe, &known, WORD('\r', '\n', 0, 0, 0, 0, 0, 0), 0, 2)) {
        struct probe rest = {probe->low >> 16 | probe->high << 48, probe->high >> 16};
        struct probe rest_known = {known.low >> 16 | known.high << 48, known.high >> 16};
        return length <= 2 ? PROTOCOL_UNDECIDED : judge_request(&rest, &rest_known);
    }
    return judge_request(probe, &known);
}
