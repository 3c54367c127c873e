#include "common/checkpoint/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "common/mutex.h"
#include "common/status.h"

namespace tandem {
namespace {

// Of a tensor, its first and last bytes; the last of one and the first of the next are read at
// once.
constexpr uint64_t kWindowBytes = 2048;
constexpr uint64_t kReadBytes = 1 << 20;  // at most, of small tensors side by side
constexpr int kReaders = 16;              // disks and networks like several reads at once

std::string ConfigText(const ModelConfig& c) {
  std::string text = absl::StrJoin({c.vocab_size,
                                    c.hidden_size,
                                    c.intermediate_size,
                                    c.moe_intermediate_size,
                                    c.num_layers,
                                    c.num_heads,
                                    c.q_lora_rank,
                                    c.kv_lora_rank,
                                    c.qk_nope_head_dim,
                                    c.qk_rope_head_dim,
                                    c.v_head_dim,
                                    c.num_experts,
                                    c.num_shared_experts,
                                    c.experts_per_token,
                                    c.first_k_dense_replace,
                                    c.moe_layer_freq,
                                    static_cast<int32_t>(c.topk_method),
                                    c.num_groups,
                                    c.top_groups,
                                    c.norm_topk_prob ? 1 : 0,
                                    c.max_position_embeddings,
                                    c.tie_word_embeddings ? 1 : 0},
                                   ",");
  absl::StrAppendFormat(&text, ";%a,%a,%a", c.routed_scaling_factor, c.rms_norm_eps, c.rope_theta);
  if (c.yarn) {
    absl::StrAppendFormat(&text, ";%a,%a,%a,%a,%a,%a", c.yarn->factor,
                          c.yarn->original_max_position_embeddings, c.yarn->beta_fast,
                          c.yarn->beta_slow, c.yarn->mscale, c.yarn->mscale_all_dim);
  }
  absl::StrAppend(&text, ";bos ", c.bos_token_id.value_or(-1), ";eos ",
                  absl::StrJoin(c.eos_token_ids, ","));
  return text;
}

// Bytes of a file, and where they are to go.
struct Window {
  const SafetensorsFile* file = nullptr;
  uint64_t begin = 0;
  uint64_t end = 0;
  char* to = nullptr;
};

// Windows that one read covers: sorted by where they lie, without large holes.
using WindowRun = absl::Span<const Window>;

std::vector<WindowRun> MakeRuns(std::vector<Window>* windows) {
  std::sort(windows->begin(), windows->end(), [](const Window& a, const Window& b) {
    return std::tie(a.file->path(), a.begin) < std::tie(b.file->path(), b.begin);
  });
  std::vector<WindowRun> runs;
  for (size_t begin = 0; begin < windows->size();) {
    size_t end = begin + 1;
    const Window& first = (*windows)[begin];
    while (end < windows->size() && (*windows)[end].file == first.file &&
           (*windows)[end].begin <= (*windows)[end - 1].end + kWindowBytes &&
           (*windows)[end].end - first.begin <= kReadBytes) {
      ++end;
    }
    runs.push_back(absl::MakeConstSpan(*windows).subspan(begin, end - begin));
    begin = end;
  }
  return runs;
}

absl::Status ReadRun(WindowRun run) {
  const uint64_t begin = run.front().begin;
  std::string bytes(run.back().end - begin, '\0');
  TANDEM_RETURN_IF_ERROR(run.front().file->Read(begin, bytes.size(), bytes.data()));
  for (const Window& window : run) {
    std::copy_n(bytes.data() + (window.begin - begin), window.end - window.begin, window.to);
  }
  return absl::OkStatus();
}

absl::Status ReadAll(const Checkpoint& checkpoint, const std::vector<WindowRun>& runs,
                     const std::function<void(float)>& progress) {
  std::atomic<size_t> next = 0;
  Mutex mutex;
  size_t done = 0;  // guarded by mutex, as what follows
  absl::Status first_error;
  const auto read = [&] {
    for (size_t i; (i = next++) < runs.size();) {
      absl::Status status = checkpoint.CheckStop();
      if (status.ok()) status = ReadRun(runs[i]);
      MutexLock lock(mutex);
      first_error.Update(status);
      if (!first_error.ok()) return;
      if (progress) progress(static_cast<float>(++done) / static_cast<float>(runs.size()));
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < kReaders; ++i) threads.emplace_back(read);
  read();
  for (std::thread& thread : threads) thread.join();
  return first_error;
}

}  // namespace

absl::StatusOr<std::string> CheckpointDigest(const Checkpoint& checkpoint,
                                             const std::function<void(float)>& progress) {
  std::vector<std::string> samples;  // by tensor
  std::vector<Window> windows;
  samples.reserve(checkpoint.tensors().size());  // windows point into them
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const auto [begin, end] = std::pair(tensor.entry.begin, tensor.entry.end);
    const uint64_t size = end - begin;
    std::string& sample = samples.emplace_back(std::min(size, 2 * kWindowBytes), '\0');
    if (size <= 2 * kWindowBytes) {
      windows.push_back({tensor.file.get(), begin, end, sample.data()});
    } else {
      windows.push_back({tensor.file.get(), begin, begin + kWindowBytes, sample.data()});
      windows.push_back({tensor.file.get(), end - kWindowBytes, end, sample.data() + kWindowBytes});
    }
  }
  TANDEM_RETURN_IF_ERROR(ReadAll(checkpoint, MakeRuns(&windows), progress));

  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  const auto add = [&](const std::string& bytes) {
    const uint64_t length = bytes.size();
    XXH3_128bits_update(state.get(), &length, sizeof(length));
    XXH3_128bits_update(state.get(), bytes.data(), bytes.size());
  };
  add(ConfigText(checkpoint.config()));
  auto sample = samples.begin();
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    add(absl::StrCat(name, ":", tensor.entry.dtype, ":", absl::StrJoin(tensor.entry.shape, ",")));
    add(*sample++);
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace tandem
