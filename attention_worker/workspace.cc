#include "attention_worker/workspace.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace tandem {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kMinChunkBytes = size_t{1} << 20;

}  // namespace

TensorView Workspace::Take(Dtype dtype, std::initializer_list<int64_t> dims) {
  TensorView view(nullptr, dtype, dims);
  const size_t bytes = (view.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  while (top_.chunk < chunks_.size() && chunks_[top_.chunk]->bytes() - top_.used_bytes < bytes) {
    top_ = {top_.chunk + 1, 0};
  }
  if (top_.chunk == chunks_.size()) AddChunk(bytes);
  view.data = static_cast<std::byte*>(chunks_[top_.chunk]->data()) + top_.used_bytes;
  top_.used_bytes += bytes;
  return view;
}

void Workspace::Clear() {
  top_ = {};
  if (chunks_.size() <= 1) return;
  size_t bytes = 0;
  for (const auto& chunk : chunks_) bytes += chunk->bytes();
  chunks_.clear();
  AddChunk(bytes);
}

void Workspace::AddChunk(size_t bytes) {
  auto buffer = backend_->Allocate(std::max(bytes, kMinChunkBytes));
  TANDEM_CHECK(buffer.ok());
  chunks_.push_back(*std::move(buffer));
}

SharedRows::Rows SharedRows::Take(Dtype dtype, std::initializer_list<int64_t> dims) {
  TensorView view(nullptr, dtype, dims);
  std::unique_ptr<kernels::Buffer> buffer;
  {
    std::lock_guard<std::mutex> lock(returned_->mu);
    buffer = std::move(returned_->buffer);
  }
  if (buffer == nullptr || buffer->bytes() < view.bytes()) {
    auto fresh = backend_->Allocate(view.bytes());
    TANDEM_CHECK(fresh.ok());
    buffer = *std::move(fresh);
  }
  view.data = buffer->data();
  const auto give_back = [returned = returned_](kernels::Buffer* buffer) {
    std::unique_ptr<kernels::Buffer> owned(buffer);
    std::lock_guard<std::mutex> lock(returned->mu);
    returned->buffer.swap(owned);
  };
  return {view, std::shared_ptr<kernels::Buffer>(buffer.release(), give_back)};
}

}  // namespace tandem
