// Byte-level byte-pair encoding (Sennrich et al., arXiv:1508.07909, over bytes as in GPT-2).
#ifndef TANDEM_COMMON_TOKENIZER_BPE_H_
#define TANDEM_COMMON_TOKENIZER_BPE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/tokenizer/stop_check.h"

namespace tandem {

// `left` next to `right` becomes `result`. A merge's index in the file is its rank.
struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t result;
};

// Encodes one piece of text: its bytes become symbols; then, again and again, the adjacent pair
// with the lowest rank is merged, the leftmost first, until no pair has a rank.
// Immutable; any number of threads may encode with it.
class Bpe {
 public:
  // `byte_ids` holds the token of each single byte, or -1: such bytes are dropped, as they are by
  // Hugging Face `tokenizers` without an unk token. `merges` are in the order of rank; of two with
  // the same pair the later counts. `tokens` are the bytes of each token, empty for unused ids.
  //
  // Merges every token's own bytes once, and remembers those that yield just that token: pieces
  // that are such a token, most of a text, are encoded by one look-up.
  Bpe(const std::array<int32_t, 256>& byte_ids, absl::Span<const BpeMerge> merges,
      absl::Span<const std::string> tokens);

  // Appends the tokens of `piece` to `ids`.
  // Cost: O(n log n) for a piece of n bytes. Once `stop` says so it ends early, and what it has
  // appended is of no use.
  void Encode(absl::string_view piece, std::vector<int32_t>* ids, StopCheck* stop = nullptr) const;

 private:
  struct RankedResult {
    uint32_t rank;
    int32_t result;
  };

  // The merge of a pair of tokens, or nullptr.
  const RankedResult* FindMerge(int32_t left, int32_t right) const;

  // Both append what Encode does, without the look-up of whole pieces.
  void EncodeByMerging(absl::string_view piece, std::vector<int32_t>* ids, StopCheck* stop) const;
  void MergeShort(absl::string_view piece, std::vector<int32_t>* ids) const;
  void MergeLong(absl::string_view piece, std::vector<int32_t>* ids, StopCheck* stop) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, RankedResult> merges_;  // key: left in the upper half, right
  absl::flat_hash_map<std::string, int32_t> whole_;     // pieces that are one token
  size_t longest_whole_ = 0;                            // bytes
};

}  // namespace tandem

#endif  // TANDEM_COMMON_TOKENIZER_BPE_H_
