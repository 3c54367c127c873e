#include "deployment/keep_packed.h"

#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "deployment/memory_needs.h"
#include "spdlog/spdlog.h"

namespace tandem {
namespace {

constexpr int64_t kWorthKeeping = 16 << 20;  // bytes; less is packed within 0.1 s
constexpr size_t kDigestDigits = 16;         // in a folder's name

}  // namespace

std::string PackedSource(const Checkpoint& checkpoint, const std::string& digest) {
  std::string source = digest;
  for (const auto& file : checkpoint.files()) {
    absl::StrAppend(&source, "; ", std::filesystem::path(file->path()).filename().string(), " ",
                    file->bytes(), " ", file->modified_ns());
  }
  return source;
}

void KeepPacked(const KeepPackedOptions& options, Checkpoint* checkpoint) {
  if (!IsInteger(options.format) || options.folder == kKeepNothing) return;
  const std::string format = WeightFormatName(options.format);
  PackedWeights::Options packed;
  if (!options.folder.empty()) {
    packed.dir =
        absl::StrCat(options.folder, "/", options.digest.substr(0, kDigestDigits), "-", format);
  } else {
    packed.dir = absl::StrCat(options.model_dir, "/packed-", format);
    const int64_t bytes =
        ExpertBytes(*checkpoint, options.format) + OtherBytes(*checkpoint, options.format);
    std::error_code unknown;
    if (bytes < kWorthKeeping && !options.wait && !std::filesystem::exists(packed.dir, unknown)) {
      return;
    }
  }
  packed.source = PackedSource(*checkpoint, options.digest);
  packed.check_source = [checkpoint] { return checkpoint->CheckUnchanged(); };
  packed.wait = options.wait;
  spdlog::info("packed weights are kept in {}", packed.dir);
  checkpoint->KeepPacked(std::make_unique<PackedWeights>(std::move(packed)));
}

}  // namespace tandem
