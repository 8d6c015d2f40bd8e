// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// The kernel side of the tap: one translation unit made of the headers beside it, in
// the order in which a transaction passes them.
//
// It only looks: no helper that writes to user memory, to a packet or to a kernel
// structure is used, and a test scans the programs for them.

#include <uapi/linux/ptrace.h>
#include <linux/types.h>

#include "events.h"
#include "protocol_detect.h"
#include "maps.h"
#include "arch.h"
#include "sock.h"
#include "haproxy.h"
#include "connection.h"
#include "data.h"
#include "log.h"
#ifdef RUNG_SYSCALLS
#include "syscalls.h"
#else
#include "sockets.h"
#endif
#include "process.h"
