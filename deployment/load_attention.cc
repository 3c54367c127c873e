#include "deployment/load_attention.h"

#include <utility>

#include "common/pages.h"
#include "common/status.h"
#include "common/tokenizer/allowed_ids.h"

namespace tandem {

absl::StatusOr<LoadedAttention> LoadAttention(const AttentionParts& parts,
                                              const std::function<void(float)>& progress) {
  LoadedAttention loaded;
  TANDEM_ASSIGN_OR_RETURN(loaded.model, AttentionModel::Load(*parts.checkpoint, parts.backend,
                                                             parts.dtype, parts.format, progress));
  AttentionEngineOptions options;
  options.total_pages = static_cast<int>(PagesFor(parts.cache_tokens));
  options.layer_times = parts.layer_times;
  options.ids_with_token = IdsWithToken(parts.tokenizer, parts.checkpoint->config().vocab_size);
  TANDEM_ASSIGN_OR_RETURN(loaded.engine,
                          AttentionEngine::Create(parts.backend, loaded.model.get(), parts.experts,
                                                  std::move(options)));
  return loaded;
}

}  // namespace tandem
