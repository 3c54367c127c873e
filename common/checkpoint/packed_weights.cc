#include "common/checkpoint/packed_weights.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/machine.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace tandem {

class PackedWeights::KeptUnit final : public PackedUnit {
 public:
  KeptUnit(PackedWeights* all, std::string name) : all_(*all), name_(std::move(name)) {
    auto file = PackedFile::Open(all_.PathOf(name_));
    if (file.ok() && (*file)->label().unit == name_ &&
        (*file)->label().source == all_.options_.source) {
      file_ = *std::move(file);
    } else if (file.ok()) {
      all_.Refuse(absl::FailedPreconditionError(
          absl::StrCat(all_.PathOf(name_), " was made of another checkpoint")));
    } else if (!absl::IsNotFound(file.status())) {
      all_.Refuse(file.status());
    }
  }

  bool is_kept() const override { return file_ != nullptr; }

  std::shared_ptr<const std::byte> Find(const std::string& layout, int64_t bytes,
                                        ForAll for_all) override {
    if (file_ == nullptr) return nullptr;
    const std::shared_ptr<const PackedFile> file = std::exchange(file_, nullptr);
    if (file->label().layout != layout || file->label().bytes != bytes) {
      all_.Refuse(absl::FailedPreconditionError(absl::StrCat(
          all_.PathOf(name_), " is packed as ", file->label().layout, ", not as ", layout)));
      return nullptr;
    }
    absl::StatusOr<std::shared_ptr<const std::byte>> memory = file->Map(for_all);
    if (!memory.ok()) {
      damaged_ = absl::IsDataLoss(memory.status());
      all_.Refuse(memory.status());
      return nullptr;
    }
    ++all_.mapped_;
    all_.mapped_bytes_ += bytes;
    if (!all_.options_.wait && bytes >= static_cast<int64_t>(kHugePageBytes))
      all_.mover_.Move(*memory, bytes);
    return *std::move(memory);
  }

  void Keep(const std::string& layout, std::shared_ptr<const std::byte> memory,
            int64_t bytes) override {
    all_.Keep({{name_, all_.options_.source, layout, bytes}, damaged_, memory});
  }

 private:
  PackedWeights& all_;
  const std::string name_;
  std::shared_ptr<const PackedFile> file_;  // null: none, or none of this unit and source
  bool damaged_ = false;                    // what Find found
};

PackedWeights::PackedWeights(Options options) : options_(std::move(options)) {}

PackedWeights::~PackedWeights() {
  std::thread writes;
  {
    MutexLock lock(mutex_);
    ending_ = true;
    writes = std::move(writes_);
  }
  wake_.NotifyAll();
  if (writes.joinable()) writes.join();
}

std::unique_ptr<PackedUnit> PackedWeights::Unit(const std::string& name) {
  return std::make_unique<KeptUnit>(this, name);
}

bool PackedWeights::Has(const std::string& name) const {
  const auto file = PackedFile::Open(PathOf(name));
  return file.ok() && (*file)->label().unit == name && (*file)->label().source == options_.source;
}

absl::Status PackedWeights::status() const {
  MutexLock lock(mutex_);
  return error_;
}

CounterSnapshot PackedWeights::Counters() const {
  return {{"packed_mapped", mapped_},
          {"packed_mapped_bytes", mapped_bytes_},
          {"packed_moved_bytes", mover_.moved_bytes()},
          {"packed_waiting_bytes", mover_.waiting_bytes()},
          {"packed_refused", refused_},
          {"packed_written", written_},
          {"packed_failed", status().ok() ? 0 : 1}};
}

std::string PackedWeights::PathOf(const std::string& unit) const {
  return absl::StrCat(options_.dir, "/", unit);
}

void PackedWeights::Refuse(const absl::Status& why) {
  if (refused_++ == 0) spdlog::info("packed again: {}", std::string(why.message()));
}

void PackedWeights::Keep(Job job) {
  if (options_.wait) return WriteOrFail(job);
  {
    MutexLock lock(mutex_);
    if (!error_.ok()) return;
    jobs_.push_back(std::move(job));
    if (!writes_.joinable()) writes_ = std::thread([this] { RunWrites(); });
  }
  wake_.NotifyAll();
}

void PackedWeights::RunWrites() {
  while (true) {
    Job job;
    {
      MutexLock lock(mutex_);
      wake_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return ending_ || !jobs_.empty();
      });
      if (ending_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    WriteOrFail(job);
  }
}

void PackedWeights::WriteOrFail(const Job& job) {
  if (!status().ok()) return;
  const absl::Status written = Write(job);
  if (written.ok() || absl::IsCancelled(written)) return;
  spdlog::warn("packed weights are kept no more, so the next start will pack them again: {}",
               std::string(written.message()));
  MutexLock lock(mutex_);
  error_ = written;
  jobs_.clear();
}

absl::Status PackedWeights::Write(const Job& job) {
  const std::shared_ptr<const std::byte> memory = job.memory.lock();
  if (memory == nullptr) return absl::OkStatus();  // no longer in use
  const std::string path = PathOf(job.label.unit);
  if (!job.damaged) {
    const auto file = PackedFile::Open(path);
    if (file.ok() && (*file)->label() == job.label) {
      return absl::OkStatus();  // another process was faster
    }
  }
  std::error_code error;
  std::filesystem::create_directories(options_.dir, error);
  if (error) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot make ", options_.dir, ": ", error.message()));
  }
  const auto go_on = [this] {
    if (ending_) return absl::CancelledError("the process ends");
    return options_.check_source ? options_.check_source() : absl::OkStatus();
  };
  TANDEM_ASSIGN_OR_RETURN(const bool written, WritePackedFile(path, job.label, memory.get(),
                                                              options_.spare_bytes, go_on));
  if (written) {
    ++written_;
  } else if (options_.wait) {
    return absl::UnavailableError(absl::StrCat("another process is writing ", path));
  }
  return absl::OkStatus();
}

}  // namespace tandem
