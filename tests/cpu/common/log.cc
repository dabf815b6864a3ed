// SPDX-License-Identifier: LGPL-2.1-or-later
// Bochs's log, as far as nobody reads it. Whoever links this has the rest: error(), panic() and fatal1().

#include "bochs.h"

logfunctions::logfunctions(void) {}
logfunctions::~logfunctions() {}
void logfunctions::put(const char *) {}
void logfunctions::put(const char *, const char *) {}
void logfunctions::info(const char *, ...) {}
void logfunctions::ldebug(const char *, ...) {}

logfunctions *genlog = new logfunctions, *pluginlog = genlog, *siminterface_log = genlog;
