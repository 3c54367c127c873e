#include "common/tokenizer/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <vector>

#include "tests/common/tokenizer/stop_at.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;

// Letters a, b, c, d are tokens 0 to 3; merge k makes token 4 + k. Other bytes have no token.
class BpeTest : public testing::Test {
 protected:
  BpeTest() {
    byte_ids_.fill(-1);
    tokens_ = {"a", "b", "c", "d"};
    for (int i = 0; i < 4; ++i) byte_ids_['a' + i] = i;
  }

  void AddMerge(const std::string& left, const std::string& right) {
    const int32_t result = static_cast<int32_t>(tokens_.size());
    merges_.push_back({Find(left), Find(right), result});
    tokens_.push_back(left + right);
  }

  int32_t Find(const std::string& token) const {
    return static_cast<int32_t>(std::find(tokens_.begin(), tokens_.end(), token) - tokens_.begin());
  }

  std::vector<int32_t> Encode(const std::string& piece) const {
    std::vector<int32_t> ids;
    Bpe(byte_ids_, merges_, tokens_).Encode(piece, &ids);
    return ids;
  }

  // The definition, literally.
  std::vector<int32_t> EncodeNaively(const std::string& piece) const {
    std::vector<int32_t> ids;
    for (const char c : piece) {
      if (byte_ids_[static_cast<uint8_t>(c)] >= 0) ids.push_back(c - 'a');
    }
    while (true) {
      size_t best_rank = merges_.size();
      size_t best = 0;
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        for (size_t rank = 0; rank < best_rank; ++rank) {
          if (merges_[rank].left == ids[i] && merges_[rank].right == ids[i + 1]) {
            best_rank = rank;
            best = i;
          }
        }
      }
      if (best_rank == merges_.size()) return ids;
      ids[best] = merges_[best_rank].result;
      ids.erase(ids.begin() + best + 1);
    }
  }

  std::array<int32_t, 256> byte_ids_;
  std::vector<std::string> tokens_;
  std::vector<BpeMerge> merges_;
};

TEST_F(BpeTest, MergesTheLowestRankFirstAndLeftmost) {
  AddMerge("b", "c");  // 4
  AddMerge("a", "b");  // 5
  AddMerge("a", "a");  // 6
  EXPECT_THAT(Encode("abc"), ElementsAre(0, 4));
  EXPECT_THAT(Encode("aaa"), ElementsAre(6, 0));
  EXPECT_THAT(Encode("aaaab"), ElementsAre(6, 0, 5));
}

TEST_F(BpeTest, DoesNotTakeAWholeTokenThatMergesCannotReach) {
  AddMerge("a", "b");   // 4
  AddMerge("b", "c");   // 5
  AddMerge("a", "bc");  // 6: abc, but merge 4 takes its b first
  EXPECT_THAT(Encode("abc"), ElementsAre(4, 2));
}

TEST_F(BpeTest, DropsBytesWithoutAToken) {
  AddMerge("a", "b");
  EXPECT_THAT(Encode("axb"), ElementsAre(4));
  EXPECT_THAT(Encode("xyz"), ElementsAre());
  EXPECT_THAT(Encode(std::string(100, 'x')), ElementsAre());
  EXPECT_THAT(Encode(""), ElementsAre());
}

TEST_F(BpeTest, OfTwoMergesOfAPairTheLaterCounts) {
  AddMerge("a", "b");  // 4, rank 0
  AddMerge("b", "c");  // 5, rank 1
  merges_.push_back({0, 1, 4});
  EXPECT_THAT(Encode("abc"), ElementsAre(0, 5));
}

TEST_F(BpeTest, AgreesWithTheDefinitionAtAllLengths) {
  std::mt19937 rng(4);
  for (int round = 0; round < 300; ++round) {
    tokens_.resize(4);
    merges_.clear();
    for (int i = 0; i < 12; ++i) {
      const std::string left = tokens_[rng() % tokens_.size()];
      const std::string right = tokens_[rng() % tokens_.size()];
      if (Find(left + right) < static_cast<int32_t>(tokens_.size())) continue;
      AddMerge(left, right);
    }
    for (const int length : {1, 2, 5, 20, 63, 64, 65, 130}) {
      std::string piece;
      for (int i = 0; i < length; ++i) piece.push_back("abcdx"[rng() % (rng() % 8 ? 4 : 5)]);
      ASSERT_EQ(Encode(piece), EncodeNaively(piece)) << piece;
    }
  }
}

TEST_F(BpeTest, EncodesAQuarterMegabyteInOnePiece) {
  AddMerge("a", "a");
  AddMerge("aa", "aa");
  EXPECT_EQ(Encode(std::string(1 << 18, 'a')).size(), size_t{1} << 16);
}

TEST_F(BpeTest, OneLongPieceEndsWhenItIsToldTo) {
  AddMerge("a", "b");
  const Bpe bpe(byte_ids_, merges_, tokens_);
  std::string piece;
  constexpr int kBlocks = 32;
  while (piece.size() < kBlocks * StopCheck::kBytes) piece += "ab";
  const auto asked = [&](int last) {
    StopAt stop(last);
    const StopFunction function = stop.Function();
    StopCheck check(function);
    std::vector<int32_t> ids;
    bpe.Encode(piece, &ids, &check);
    EXPECT_EQ(check.status().code(),
              last == kNever ? absl::StatusCode::kOk : absl::StatusCode::kCancelled);
    EXPECT_EQ(ids.size(), last == kNever ? piece.size() / 2 : 0);
    return stop.asked();
  };
  // Once per block of bytes whose pairs are looked up, once per block of pairs that are merged.
  const int all = asked(kNever);
  EXPECT_GE(all, kBlocks + kBlocks / 2);
  for (const int last : {1, 2, kBlocks / 2, kBlocks + 5, all}) EXPECT_EQ(asked(last), last);
}

}  // namespace
}  // namespace tandem
