// SPDX-License-Identifier: LGPL-2.1-or-later
// What Bochs's processor refers to and never uses here. Bochs's own declarations are not read in this file, so that
// nothing of a PC's devices and windows must be constructed.

/// Room for the devices of a PC (`bx_devices_c`), all zero; only the pointer to the interrupt controller is set.
alignas(64) char bx_devices[1 << 20];
/// The window; there is none.
void *bx_gui;

class bx_gui_c {
public:
  static void cleanup();
};
void bx_gui_c::cleanup() {}
