#include "threads.h"

#include <algorithm>
#include <chrono>

namespace topk {
namespace {

constexpr int BITS = 20;
constexpr uint64_t MASK = (uint64_t(1) << BITS) - 1;
// Longer than the gaps between the phases of a step, shorter than anyone notices.
constexpr auto SPIN = std::chrono::microseconds(40);

bool has_items(uint64_t open) { return (open & MASK) < (open >> BITS & MASK); }

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int num_threads) {
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { live(thread); });
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        is_ending_ = true;
    }
    woken_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

void Pool::share(int64_t num_items, Function function, const void *context) {
    function_.store(function, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    for (int64_t first = 0; first < num_items; first += MASK) {
        const uint64_t count = std::min<int64_t>(num_items - first, MASK);
        first_.store(first, std::memory_order_relaxed);
        num_done_.store(0, std::memory_order_relaxed);
        const uint64_t phase = (open_.load(std::memory_order_relaxed) >> 2 * BITS) + 1;
        open_.store(phase << 2 * BITS | count << BITS, std::memory_order_seq_cst);
        if (num_sleeping_.load(std::memory_order_seq_cst)) {
            { std::lock_guard<std::mutex> lock(mutex_); }
            woken_.notify_all();
        }
        while (take_one(0)) {}
        for (int spins = 0; num_done_.load(std::memory_order_acquire) != count; ++spins) {
            pause_briefly();
            if (spins > 2000) std::this_thread::yield();
        }
    }
}

bool Pool::take_one(int thread) {
    uint64_t open = open_.load(std::memory_order_acquire);
    while (has_items(open)) {
        if (!open_.compare_exchange_weak(open, open + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
        const int64_t item = first_.load(std::memory_order_relaxed) + int64_t(open & MASK);
        function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), item, thread);
        num_done_.fetch_add(1, std::memory_order_release);
        return true;
    }
    return false;
}

void Pool::live(int thread) {
    using Clock = std::chrono::steady_clock;
    while (!is_ending_.load(std::memory_order_relaxed)) {
        if (take_one(thread)) continue;
        const auto until = Clock::now() + SPIN;
        bool is_open = false;
        while (!is_open && Clock::now() < until) {
            for (int i = 0; i < 32 && !is_open; ++i) {
                pause_briefly();
                is_open = has_items(open_.load(std::memory_order_relaxed));
            }
        }
        if (!is_open) sleep();
    }
}

void Pool::sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    num_sleeping_.fetch_add(1, std::memory_order_seq_cst);
    woken_.wait(lock, [this] { return is_ending_ || has_items(open_.load(std::memory_order_seq_cst)); });
    num_sleeping_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace topk
