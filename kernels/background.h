// Work that a thread does beside work that somebody waits for.
#ifndef TANDEM_KERNELS_BACKGROUND_H_
#define TANDEM_KERNELS_BACKGROUND_H_

namespace tandem::kernels {

// As long as it lives and is on, what its thread asks of a backend is computed by that thread
// alone: it takes no thread of the backend's from calls of others. At most one per thread.
class Background {
 public:
  Background() = default;
  ~Background() { is_on_ = false; }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // For the thread that made it.
  void Set(bool on) { is_on_ = on; }
  // Of the calling thread.
  static bool is_on() { return is_on_; }

 private:
  inline static thread_local bool is_on_ = false;
};

}  // namespace tandem::kernels

#endif  // TANDEM_KERNELS_BACKGROUND_H_
