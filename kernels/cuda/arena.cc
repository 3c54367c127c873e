#include "kernels/cuda/arena.h"

#include <algorithm>
#include <cstdint>

#include "common/check.h"

namespace tandem::kernels::cuda {

Arena::Arena(size_t bytes) : bytes_(bytes / kAlignment * kAlignment) {
  if (bytes_ > 0) AddFree(0, bytes_);
}

size_t Arena::Rounded(size_t bytes) {
  return (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

std::optional<size_t> Arena::Take(size_t bytes) {
  if (bytes > bytes_) return std::nullopt;
  const size_t wanted = Rounded(bytes);
  const auto smallest = by_size_.lower_bound({wanted, 0});
  if (smallest == by_size_.end()) return std::nullopt;
  const auto [part_bytes, offset] = *smallest;
  RemoveFree(by_offset_.find(offset));
  if (part_bytes > wanted) AddFree(offset + wanted, part_bytes - wanted);
  return offset;
}

void Arena::GiveBack(size_t offset, size_t bytes) {
  size_t begin = offset, end = offset + Rounded(bytes);
  TANDEM_CHECK(end <= bytes_);
  auto next = by_offset_.lower_bound(begin);
  if (next != by_offset_.begin()) {
    const auto before = std::prev(next);
    const size_t before_end = before->first + before->second;
    TANDEM_CHECK(before_end <= begin);
    if (before_end == begin) {
      begin = before->first;
      RemoveFree(before);
    }
  }
  if (next != by_offset_.end()) {
    TANDEM_CHECK(next->first >= end);
    if (next->first == end) {
      end += next->second;
      RemoveFree(next);
    }
  }
  AddFree(begin, end - begin);
}

void Arena::AddFree(size_t offset, size_t bytes) {
  by_offset_.emplace(offset, bytes);
  by_size_.emplace(bytes, offset);
  free_bytes_ += bytes;
}

void Arena::RemoveFree(std::map<size_t, size_t>::iterator part) {
  by_size_.erase({part->second, part->first});
  free_bytes_ -= part->second;
  by_offset_.erase(part);
}

}  // namespace tandem::kernels::cuda
