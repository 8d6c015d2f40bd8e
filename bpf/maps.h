// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Every map: its key, its value, and who removes the entries.

// Records for user space, in the order in which the kernel saw things. The agent maps
// the ring into its memory and empties it by timer, so nothing is ever woken up:
// wake-ups would cost HAProxy more than all the rest together.
BPF_RINGBUF_OUTPUT(records, RING_PAGES);

// Where a record is put together before it goes into the ring at its exact size.
#define CHUNK_BYTES 16384

// What a call moved and how much of it is to be copied. It goes through map memory, of
// which the verifier remembers nothing: otherwise it would walk the copying loop once
// for each of the many ways that lead there, and give up.
struct transfer {
    u64 base;
    u64 segments;
    u64 offset;
    u64 size;
    u64 copy;
    u32 readable;
    u32 seen; // enum protocol of its first bytes
    u32 begins_request;
    u32 probe_length; // known bytes of the probe
    struct probe probe;
    u64 piece; // bytes of the record being made
};

struct scratch {
    struct data_record record;
    u8 payload[CHUNK_BYTES];
    struct transfer transfer;
};

BPF_PERCPU_ARRAY(scratches, struct scratch, 1);

enum phase {
    PHASE_FRESH = 0,   // seen from its beginning; the first bytes decide
    PHASE_LATE = 1,    // older than the agent; decided when the talk changes direction
    PHASE_HTTP = 2,    // followed
    PHASE_IGNORED = 3, // not HTTP, or not wanted: costs one look-up per call
};

struct connection {
    // What every event needs stands together.
    u64 id;
    u64 bytes[2];   // passed so far, by flow
    u64 turn_bytes; // passed since the talk changed direction
    u32 layout;     // which of `layouts` its process has; NO_LAYOUT: not a HAProxy
    u16 generation; // of the settings that decided PHASE_IGNORED
    u16 changes;    // settings.changes when its process was last looked up
    u8 phase;
    u8 role;
    u8 last_flow; // 2: none yet
    u8 announced; // RECORD_OPEN has gone out
    u8 joined_late;
    u8 turns;       // changes of direction looked at in PHASE_LATE
    u8 is_own;      // the agent opened it
    u8 is_shut;     // this side has sent its FIN
    u32 remote_key;  // skc_daddr, to notice that a socket address is used again
    u16 remote_port; // network byte order
    u16 local_port;  // host byte order; the socket forgets it when it is reset
    u8 probe_length[2];
    u8 awaits_reader; // a server's, that may be a relay: see follow_relay() in data.h
    struct probe probes[2]; // first bytes, by flow, while PHASE_FRESH
    u64 connect_started_ns;
    u64 established_ns;
    // What was processed at connect; of a client's, when a stream first tried to read, or else
    // when the first bytes came.
    struct stream connecting;
};

// Key: address of struct sock. Removed when the kernel destroys the socket
// (tcp:tcp_destroy_sock); taken over when the same address shows another remote end.
BPF_HASH(connections, u64, struct connection, CONNECTION_ENTRIES);

// The first bytes from a server that may be a relay, and which task got them.
struct reading {
    u64 task;
    u64 connection_id;
};

// Key: thread; value: what it read last. The oldest go.
BPF_TABLE("lru_hash", u32, struct reading, readings, 4096);

// Key: thread group id. Filled and emptied by user space.
BPF_HASH(excluded, u32, u8, 16384);

// Directions that are wanted, see direction_bit().
#define WANT_INGRESS 1
#define WANT_EGRESS_INTERNAL 2
#define WANT_EGRESS_EXTERNAL 4
#define WANT_NOTHING 0 // before the agent has said what it wants, and once it detaches

struct settings {
    u32 generation; // raised with every change, so that refusals are thought over
    u32 directions;
    u32 ignore_loopback;
    u32 turn_limit;   // bytes to copy after each change of direction
    u32 beyond_limit; // bytes to copy of each call past that: chunk sizes, further heads
    u32 protocols;    // bit 1 << enum protocol for what is followed
    u32 changes;      // raised when `excluded` or `haproxies` changes
    u32 agent;        // thread group id of the agent
    u32 has_haproxy;  // whether any process has a layout
};

BPF_ARRAY(settings_map, struct settings, 1);

// The ends of the agent's own connections, so that a collector on the same host is not
// captured while it takes in what the agent captured, and so on for ever.
// Key: own_end(). Entered when such a connection is established; the oldest go.
BPF_TABLE("lru_hash", u64, u8, own_ends, 4096);

// Key: enum lost_reason. Only ever grows.
BPF_PERCPU_ARRAY(lost, u64, LOST_REASONS);

static __always_inline void count_lost(u32 reason)
{
    u64 *value = lost.lookup(&reason);
    if (value)
        *value += 1;
}
