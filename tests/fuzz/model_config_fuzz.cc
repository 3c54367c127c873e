// A checkpoint's config.json.

#include "common/model_config.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem;
  const auto config = ParseModelConfig(fuzz::Input(data, size).Rest(), "config.json");
  if (!config.ok()) return 0;
  TANDEM_CHECK(config->num_layers > 0 && config->hidden_size > 0 && config->vocab_size > 0);
  TANDEM_CHECK(config->cache_row_width() > 0 && config->qk_head_dim() > 0);
  TANDEM_CHECK(config->num_routed_experts() >= 0 && config->shared_intermediate_size() >= 0);
  TANDEM_CHECK(config->experts_per_token <= config->num_experts);
  return 0;
}
