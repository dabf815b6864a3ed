// SPDX-License-Identifier: LGPL-2.1-or-later
// The parameters that Bochs's processors are made by.
#ifndef PASIDON_PARAMETERS_H
#define PASIDON_PARAMETERS_H

/// Makes the parameters anew, for processors of that model of Bochs's with features more or fewer, whose names are
/// separated by commas. False where there is none of that name.
bool choose_model(const char *model, const char *more, const char *fewer);

/// Sets a parameter that is a number; those that nobody sets are 1.
void set_parameter(const char *name, unsigned value);

/// Sets a parameter that is on or off; those that nobody sets are off.
void set_flag(const char *name, bool on);

#endif
