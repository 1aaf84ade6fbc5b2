// Threads that share out the items of one phase after another.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace topk {

/// The calling thread and `num_threads` - 1 others. Any thread may take any item, so a phase waits for no thread in
/// particular: one that the host has descheduled holds up only an item that it has begun.
class Pool {
public:
    explicit Pool(int num_threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int num_threads() const { return int(workers_.size()) + 1; }

    /// Call `work(item, thread)` for every item below `num_items`, and return when all are done.
    template <class Work> void run(int64_t num_items, const Work &work) {
        if (num_items <= 1 || workers_.empty()) {
            for (int64_t item = 0; item < num_items; ++item) work(item, 0);
            return;
        }
        share(
            num_items, [](const void *context, int64_t item, int thread) { (*static_cast<const Work *>(context))(item, thread); },
            &work);
    }

    /// The same on the calling thread alone, for phases too short to share.
    template <class Work> void run_here(int64_t num_items, const Work &work) {
        for (int64_t item = 0; item < num_items; ++item) work(item, 0);
    }

private:
    using Function = void (*)(const void *context, int64_t item, int thread);

    void share(int64_t num_items, Function function, const void *context);
    bool take_one(int thread);
    void live(int thread);
    void sleep();

    // What is open, in one word so that one exchange takes an item: phase number | items (20 bits) | next (20 bits).
    // A claim therefore holds whatever a thread has missed in between.
    alignas(64) std::atomic<uint64_t> open_{0};
    alignas(64) std::atomic<uint32_t> num_done_{0};
    alignas(64) std::atomic<Function> function_{nullptr};  // these two change only while nothing is open
    std::atomic<const void *> context_{nullptr};
    std::atomic<int64_t> first_{0};
    std::atomic<int> num_sleeping_{0};
    std::atomic<bool> is_ending_{false};
    std::mutex mutex_;
    std::condition_variable woken_;
    std::vector<std::thread> workers_;
};

}  // namespace topk
