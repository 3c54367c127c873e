// How long each part of a layer takes, for Prometheus.
#ifndef TANDEM_ATTENTION_WORKER_LAYER_TIMES_H_
#define TANDEM_ATTENTION_WORKER_LAYER_TIMES_H_

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "common/counters.h"

namespace tandem {

// What a layer's time is made of, in this order. Together they are the time from its begin to its
// end as the rows see it, also where the engine ran another walk meanwhile.
enum class LayerPart : uint8_t {
  kAttention,   // norms, attention and router, until their results can be read by the host
  kDispatch,    // the routed rows are split by worker and sent
  kMlp,         // shared experts while the routed ones are away; a dense layer's MLP
  kExpertWait,  // until the last routed row has come back; nothing else was left to do
  kCombine,     // what came back is put together and added
};
inline constexpr size_t kNumLayerParts = 5;

// tandem_attention_layer_part_seconds{part}: a histogram over all layers.
// tandem_attention_layer_seconds_total{layer, part}: sums by layer.
//
// So there are some 25 series a part and one for each layer and part, instead of 25 for each layer
// and part: what a part's times are spread over is the steps, which all layers see alike; what
// makes a layer different from the others, its experts and who holds them, shows in its sum.
//
// Thread-safe. An observation costs some tens of nanoseconds.
class LayerTimes {
 public:
  explicit LayerTimes(int num_layers);
  LayerTimes(const LayerTimes&) = delete;
  LayerTimes& operator=(const LayerTimes&) = delete;

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }
  // Requires 0 <= layer < num_layers.
  void Observe(int layer, LayerPart part, std::chrono::nanoseconds time);
  // layer_PART_us_total of each part, over all layers: what heartbeats have of it.
  CounterSnapshot Sums() const;

 private:
  struct Part {
    prometheus::Histogram* all = nullptr;
    std::vector<prometheus::Counter*> of_layer;
    std::atomic<int64_t> total_ns = 0;
  };
  const std::shared_ptr<prometheus::Registry> registry_;
  std::array<Part, kNumLayerParts> parts_;
};

// Follows one layer after the other through its parts. Belongs to one thread.
class LayerClock {
 public:
  using Clock = std::chrono::steady_clock;

  // `times` null: nothing is measured, and `now` never asked.
  LayerClock(LayerTimes* times, std::function<Clock::time_point()> now)
      : times_(times), now_(std::move(now)) {}

  // A layer that was begun and not finished is forgotten.
  void Begin(int layer) {
    if (times_ == nullptr) return;
    layer_ = layer;
    attended_ = false;
    last_ = now_();
  }
  // `part` has ended just now. Before attention has ended no other part can: where ops only begin
  // and the device is behind, what was called in between is in the time of attention.
  void End(LayerPart part) {
    if (times_ == nullptr) return;
    attended_ = attended_ || part == LayerPart::kAttention;
    if (!attended_) return;
    const Clock::time_point now = now_();
    times_->Observe(layer_, part, now - std::exchange(last_, now));
  }

 private:
  LayerTimes* const times_;
  const std::function<Clock::time_point()> now_;
  int layer_ = 0;
  bool attended_ = false;
  Clock::time_point last_;
};

}  // namespace tandem

#endif  // TANDEM_ATTENTION_WORKER_LAYER_TIMES_H_
