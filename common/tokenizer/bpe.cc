#include "common/tokenizer/bpe.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <queue>
#include <tuple>

namespace tandem {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

// Up to here a scan for the lowest rank is cheaper than a heap.
constexpr size_t kMaxShortPiece = 64;  // bytes

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, absl::Span<const BpeMerge> merges,
         absl::Span<const std::string> tokens)
    : byte_ids_(byte_ids) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    merges_[PairKey(merge.left, merge.right)] = {static_cast<uint32_t>(rank), merge.result};
  }
  whole_.reserve(tokens.size());
  std::vector<int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) continue;
    ids.clear();
    EncodeByMerging(tokens[id], &ids, /*stop=*/nullptr);
    if (ids.size() != 1 || ids[0] != static_cast<int32_t>(id)) continue;
    whole_.emplace(tokens[id], ids[0]);
    longest_whole_ = std::max(longest_whole_, tokens[id].size());
  }
}

const Bpe::RankedResult* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::Encode(absl::string_view piece, std::vector<int32_t>* ids, StopCheck* stop) const {
  if (Stops(stop, piece.size())) return;
  if (piece.size() <= longest_whole_) {
    const auto found = whole_.find(piece);
    if (found != whole_.end()) {
      ids->push_back(found->second);
      return;
    }
  }
  EncodeByMerging(piece, ids, stop);
}

void Bpe::EncodeByMerging(absl::string_view piece, std::vector<int32_t>* ids,
                          StopCheck* stop) const {
  if (piece.size() <= kMaxShortPiece) {
    MergeShort(piece, ids);
  } else {
    MergeLong(piece, ids, stop);
  }
}

void Bpe::MergeShort(absl::string_view piece, std::vector<int32_t>* ids) const {
  int32_t symbols[kMaxShortPiece];
  RankedResult merges[kMaxShortPiece];  // merges[i]: of symbols i and i + 1
  size_t num_symbols = 0;
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    if (id >= 0) symbols[num_symbols++] = id;
  }
  const auto update = [&](size_t i) {
    const RankedResult* merge = FindMerge(symbols[i], symbols[i + 1]);
    merges[i] = merge != nullptr ? *merge : RankedResult{kNoRank, 0};
  };
  for (size_t i = 0; i + 1 < num_symbols; ++i) update(i);
  while (num_symbols > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < num_symbols; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNoRank) break;
    symbols[best] = merges[best].result;
    --num_symbols;
    std::copy(symbols + best + 2, symbols + num_symbols + 1, symbols + best + 1);
    std::copy(merges + best + 1, merges + num_symbols, merges + best);
    if (best > 0) update(best - 1);
    if (best + 1 < num_symbols) update(best);
  }
  ids->insert(ids->end(), symbols, symbols + num_symbols);
}

void Bpe::MergeLong(absl::string_view piece, std::vector<int32_t>* ids, StopCheck* stop) const {
  struct Symbol {
    int32_t id;  // -1: merged into its left neighbour
    int32_t previous;
    int32_t next;  // index, or -1
  };
  struct Candidate {
    RankedResult merge;
    int32_t left;  // index of a symbol
    bool operator>(const Candidate& other) const {
      return std::tie(merge.rank, left) > std::tie(other.merge.rank, other.left);
    }
  };
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    const int32_t index = static_cast<int32_t>(symbols.size());
    if (id >= 0) symbols.push_back({id, index - 1, index + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto propose = [&](int32_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    const RankedResult* merge = FindMerge(symbols[left].id, symbols[symbols[left].next].id);
    if (merge != nullptr) candidates.push({*merge, left});
  };
  for (size_t i = 0; i < symbols.size(); ++i) {
    if (Stops(stop, 1)) return;
    propose(static_cast<int32_t>(i));
  }
  while (!candidates.empty()) {
    if (Stops(stop, 1)) return;
    const Candidate candidate = candidates.top();
    candidates.pop();
    Symbol& left = symbols[candidate.left];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    // The pair may have changed since it was proposed.
    const RankedResult* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->rank != candidate.merge.rank) continue;
    left.id = candidate.merge.result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = candidate.left;
    propose(left.previous);
    propose(candidate.left);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids->push_back(symbols[i].id);
}

}  // namespace tandem
