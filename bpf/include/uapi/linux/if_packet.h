// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Stand-in: bcc includes this name; nothing of it is used here.
