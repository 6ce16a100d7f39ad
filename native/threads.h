// A team of threads that runs a step together, meeting at barriers.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace octavo {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where all threads of a step wait for each other. Who waits spins briefly, then offers its core to others: on a
// machine whose cores are all taken, spinning would keep the awaited thread from running.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  struct Abandoned : std::exception {};  // thrown to who waits for a thread that will not come

  void wait() {
    const uint32_t round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
      if (abandoned_.load(std::memory_order_relaxed)) throw Abandoned();
      if (spins < 2000)
        pause_cpu();
      else
        sched_yield();
    }
  }

  // A thread will not come: nobody shall wait for it.
  void abandon() { abandoned_.store(true, std::memory_order_relaxed); }

  // As at the beginning, once no thread is waiting.
  void reset() {
    arrived_.store(0, std::memory_order_relaxed);
    abandoned_.store(false, std::memory_order_relaxed);
  }

 private:
  const int threads_;
  std::atomic<bool> abandoned_{false};
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> round_{0};
};

// Threads that sleep between steps. The caller's thread is one of the team.
class Team {
 public:
  // Throws std::runtime_error when so many threads cannot be started.
  explicit Team(int threads) : barrier(threads), size(threads) {
    try {
      for (int index = 1; index < threads; index++) workers_.emplace_back([this, index] { work(index); });
    } catch (const std::system_error&) {
      const size_t started = workers_.size() + 1;
      stop();
      throw std::runtime_error("only " + std::to_string(started) + " could be started");
    }
  }

  ~Team() { stop(); }

  // Run job(index) on every thread of the team, the caller's having index 0; returns when all have ended it. When one
  // of them throws, those that wait at the barrier leave it, and the first exception is the caller's.
  void run(const std::function<void(int)>& job) {
    job_ = &job;
    running_.store(size - 1, std::memory_order_relaxed);
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    attempt(0);
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; spins++)
      spins < 2000 ? pause_cpu() : (void)sched_yield();
    if (failure_) {
      barrier.reset();
      std::rethrow_exception(std::exchange(failure_, nullptr));
    }
  }

  Barrier barrier;
  const int size;

 private:
  void attempt(int index) {
    try {
      (*job_)(index);
    } catch (const Barrier::Abandoned&) {
    } catch (...) {
      {
        const std::lock_guard<std::mutex> lock(failing_);
        if (!failure_) failure_ = std::current_exception();
      }
      barrier.abandon();
    }
  }

  void stop() {
    stop_ = true;
    start_.fetch_add(1, std::memory_order_release);
    start_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  void work(int index) {
    uint32_t seen = 0;
    for (;;) {
      // A decoding engine starts the next step within microseconds: look for a moment before going to sleep.
      for (int spins = 0; spins < 4000 && start_.load(std::memory_order_acquire) == seen; spins++)
        spins < 2000 ? pause_cpu() : (void)sched_yield();
      start_.wait(seen, std::memory_order_acquire);
      seen = start_.load(std::memory_order_acquire);
      if (stop_) return;
      attempt(index);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> workers_;
  std::atomic<uint32_t> start_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* job_ = nullptr;
  std::mutex failing_;
  std::exception_ptr failure_;  // the first one of a job
};

}  // namespace octavo
