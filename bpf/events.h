// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The structures that cross to user space: one for each kind of ring-buffer record.
//
// otel_qtap/receiver/wire.py decodes them and names the same numbers; a change here
// is a change there and raises WIRE_VERSION in both, because recordings keep these
// bytes. Every structure is laid out without padding.

#define WIRE_VERSION 2

enum record_kind {
    RECORD_OPEN = 1,
    RECORD_DATA = 2,
    RECORD_CLOSE = 3,
    RECORD_PROCESS = 4,
    RECORD_SNAPSHOT = 5,
    RECORD_LOG = 6,
};

enum flow {
    FLOW_RECEIVE = 0,
    FLOW_SEND = 1,
};

enum role {
    ROLE_UNKNOWN = 0,
    ROLE_SERVER = 1, // accepted: ingress
    ROLE_CLIENT = 2, // connected: egress
};

enum close_step {
    CLOSE_RECEIVED_END = 1, // a receive call returned 0
    CLOSE_LOCAL = 2,        // this side sent its FIN first
    CLOSE_REMOTE = 3,       // the peer's FIN came first
    CLOSE_RESET = 4,        // straight from ESTABLISHED to CLOSE
    CLOSE_CALL_FAILED = 5,  // a send or receive call failed
    CLOSE_CONNECT_FAILED = 6,
    CLOSE_DESTROYED = 7, // the kernel frees the socket
    CLOSE_LOCAL_TOO = 8, // this side sent its FIN after the peer's
};

enum process_step {
    PROCESS_EXECUTED = 1,
    PROCESS_FORKED = 2,
    PROCESS_EXITED = 3,
};

// What is known of the HAProxy stream (one request with its response) that a thread was
// processing. A failed read is a state of its own: it must never look like "none".
enum stream_state {
    STREAM_NOT_ASKED = 0, // not a HAProxy process, or an event that needs no stream
    STREAM_NONE = 1,      // the thread was in no task: accepting, polling
    STREAM_KNOWN = 2,     // in the processing of the stream given
    STREAM_OTHER = 3,     // in another task: health checks, multiplexers
    STREAM_UNREADABLE = 4,
    STREAM_ENDING = 5, // in the processing of a stream that has let go of its task
};

// A stream by its address in the process and the number that HAProxy gives each
// (`uniq_id`), because addresses are used again.
struct stream {
    u64 address; // STREAM_OTHER, of an answer: the id of the connection that it came from, or 0
    u64 task; // that processes it; STREAM_OTHER: that was running instead
    u32 serial;
    u32 state; // enum stream_state
};

// What could not be handed over, and why. Indexes of the map `lost`.
enum lost_reason {
    LOST_RING_FULL = 0,  // records that found no room in the ring
    LOST_REQUESTS = 1,   // of these, records that began with a request head
    LOST_READ_FAULT = 2, // records whose bytes could not be read from the process
    LOST_UNREADABLE = 3, // calls that moved bytes past user memory: sendfile, splice, io_uring
    LOST_OVER_LIMIT = 4, // calls with more segments or bytes than are followed
    LOST_CONNECTIONS_FULL = 5, // calls on sockets for which the table had no room
    LOST_REASONS = 6,
};

struct record_header {
    u8 kind;
    u8 detail; // flow, close_step or process_step
    u8 role;
    u8 flags;
    u32 tgid;
    u64 timestamp_ns; // CLOCK_MONOTONIC
    u64 connection_id;
};

#define OPEN_JOINED_LATE 1 // flags of RECORD_OPEN
#define OPEN_IPV6 2

struct open_record {
    struct record_header header;
    u64 connect_started_ns;
    u64 established_ns;
    u8 local_address[16]; // IPv4 in the first four bytes unless OPEN_IPV6
    u8 remote_address[16];
    u16 local_port;  // host byte order
    u16 remote_port; // network byte order
    u32 namespace;   // number of the network namespace, as in /proc/PID/ns/net
    // What was processed when the process called connect; of a client, when a stream first tried
    // to read, or else when the first bytes came.
    struct stream connecting;
};

#define DATA_TURNED 1 // flags of RECORD_DATA: the first bytes since some went the other way

struct data_record {
    struct record_header header;
    u64 offset; // of the first byte in this flow of the connection
    u32 size;   // bytes that the process moved; the payload may be shorter
    u32 copied; // bytes of the payload, which follows; the record may be longer
    u32 tid;
    u32 reserved;
    struct stream stream; // what was processed when the process sent the bytes, or got the first
};

struct close_record {
    struct record_header header;
    u32 error;
    u32 reserved;
    u64 bytes[2];         // passed until then, by flow
    struct stream stream; // what was processed when the process closed the connection
};

#define SNAPSHOT_WORDS 16
#define SNAPSHOT_TARGET 64
#define SNAPSHOT_STREAM 1024

// What a HAProxy thread had in hand while it moved bytes or opened a connection, for the
// agent to find and verify where things lie. The detail is the flow, or this one:
#define SNAPSHOT_CONNECT 2

struct snapshot_record {
    struct record_header header;
    u64 context_address;         // value of th_ctx
    u64 context[SNAPSHOT_WORDS]; // the start of struct thread_ctx
    u8 targets[SNAPSHOT_WORDS][SNAPSHOT_TARGET]; // what each of these words points to
    u64 task;           // the running task, if its function is process_stream
    u64 stream_address; // and then its argument, and the start of what that points to
    u8 stream[SNAPSHOT_STREAM];
};

#define EXECUTABLE_BYTES 256

struct process_record {
    struct record_header header;
    u32 parent_tgid;
    u32 reserved;
    // followed by the path of the program (PROCESS_EXECUTED), without its final zero
};

struct log_record {
    struct record_header header;
    u32 tid;
    u32 reserved;
    // followed by a line of HAProxy's log without its header, up to LOG_BYTES of it
};
