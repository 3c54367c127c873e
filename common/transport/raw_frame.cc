#include "common/transport/raw_frame.h"

#include <xxhash.h>

#include <utility>

namespace tandem {
namespace {

class Hasher {
 public:
  Hasher() : state_(XXH3_createState()) { XXH3_64bits_reset(state_); }
  ~Hasher() { XXH3_freeState(state_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void Add(const void* data, size_t bytes) { XXH3_64bits_update(state_, data, bytes); }
  uint64_t Digest() const { return XXH3_64bits_digest(state_); }

 private:
  XXH3_state_t* state_;
};

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

}  // namespace

grpc::Slice OwnedSlice(const void* data, size_t bytes, std::shared_ptr<const void> owner) {
  using Holder = std::shared_ptr<const void>;
  return grpc::Slice(
      const_cast<void*>(data), bytes, [](void* holder) { delete static_cast<Holder*>(holder); },
      new Holder(std::move(owner)));
}

uint64_t FrameChecksum(const std::string& header, const std::vector<grpc::Slice>& payload) {
  Hasher hasher;
  hasher.Add(header.data(), header.size());
  for (const grpc::Slice& slice : payload) hasher.Add(slice.begin(), slice.size());
  return hasher.Digest();
}

grpc::ByteBuffer EncodeRawFrame(const std::string& header,
                                const std::vector<grpc::Slice>& payload) {
  size_t payload_bytes = 0;
  for (const grpc::Slice& slice : payload) payload_bytes += slice.size();
  std::string prefix(1, static_cast<char>(kFrameHeaderTag));
  AppendVarint(header.size(), &prefix);
  prefix += header;
  if (payload_bytes > 0) {
    prefix.push_back(static_cast<char>(kFramePayloadTag));
    AppendVarint(payload_bytes, &prefix);
  }
  std::vector<grpc::Slice> slices = {grpc::Slice(prefix)};
  slices.insert(slices.end(), payload.begin(), payload.end());
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace tandem
