// SPDX-License-Identifier: LGPL-2.1-or-later
// Parameters: what nobody set is off, empty or one.

#include "parameters.h"

#include "bochs.h"
#include "gui/siminterface.h"
#include "param_names.h"

#include <cstring>
#include <map>
#include <string>

struct Parameters : bx_simulator_interface_c {
  std::map<std::string, bx_param_c *> all;
  bx_list_c *root = nullptr;

  template<class Made> Made *get(const char *name, Made *(*make)(const char *))
  {
    auto found = all.find(name);
    if (found == all.end()) found = all.emplace(name, make(strdup(name))).first;
    return static_cast<Made *>(found->second);
  }
  bx_param_bool_c *get_param_bool(const char *name, bx_param_c *) override
  {
    return get<bx_param_bool_c>(name, [](const char *kept) { return new bx_param_bool_c(nullptr, kept, "", "", 0); });
  }
  bx_param_num_c *get_param_num(const char *name, bx_param_c *) override
  {
    return get<bx_param_num_c>(
      name, [](const char *kept) { return new bx_param_num_c(nullptr, kept, "", "", 0, 1 << 20, 1); });
  }
  bx_param_string_c *get_param_string(const char *name, bx_param_c *) override
  {
    return get<bx_param_string_c>(
      name, [](const char *kept) { return new bx_param_string_c(nullptr, kept, "", "", "", 512); });
  }
  bx_param_enum_c *get_param_enum(const char *name, bx_param_c *) override
  {
    static const char *models[] = {
#define bx_define_cpudb(model) #model,
#include "cpudb.h"
#undef bx_define_cpudb
      nullptr,
    };
    return get<bx_param_enum_c>(
      name, [](const char *kept) { return new bx_param_enum_c(nullptr, kept, "", "", models, 0, 0); });
  }
  bx_list_c *get_bochs_root() override { return root; }
  bx_list_c *get_statistics_root() override { return root; }
};

bx_simulator_interface_c *SIM;
bx_list_c *root_param;
bool bx_user_quit;
void print_statistics_tree(bx_param_c *, int) {}

bool choose_model(const char *model, const char *more, const char *fewer)
{
  // Anew, as the processor registers its parts there. A parameter asks `SIM` for its number.
  Parameters *parameters = new Parameters;
  SIM = parameters;
  parameters->root = new bx_list_c(nullptr, "bochs", "");
  SIM->get_param_string(BXPN_CPU_ADD_FEATURES)->set(more);
  SIM->get_param_string(BXPN_CPU_EXCLUDE_FEATURES)->set(fewer);
  return SIM->get_param_enum(BXPN_CPU_MODEL)->set_by_name(model);
}

void set_parameter(const char *name, unsigned value) { SIM->get_param_num(name)->set(value); }

void set_flag(const char *name, bool on) { SIM->get_param_bool(name)->set(on); }
