// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Stand-in: bcc's own macros look at this number; our code never does.
#define LINUX_VERSION_CODE 393216 // 6.0.0
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
