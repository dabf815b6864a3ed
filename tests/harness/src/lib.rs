// SPDX-License-Identifier: MIT OR Apache-2.0
//! Serial-console harness: starts the platform, splits its serial line into one stream per guest, runs scenarios.
