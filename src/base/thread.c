/* The one parallel_for: a process-wide pool, one job at a time. The caller works too; workers who wake up late find the
 * job closed and go back to sleep, so a busy machine costs speed and never a deadlock. */
#include "base/base.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MAX_THREADS 256
#define SPINS_IDLE 256  /* short: other programs share the machine */
#define SPINS_DONE 1000 /* the last worker's last item ends soon after the caller's */

static struct {
  pthread_mutex_t owner; /* held by the thread whose job runs */
  pthread_mutex_t lock;  /* guards everything below but the atomics */
  pthread_cond_t wake, done;
  pthread_t thread[MAX_THREADS];
  int workers;      /* running workers */
  atomic_int width; /* wanted width, 0 = not decided yet */
  bool stop;
  bool fork_hook;
  atomic_int joined; /* workers inside the job; changed with the lock held */
  chi_task_fn fn;    /* NULL = closed */
  void *ud;
  int64_t n, chunk;
  atomic_uint generation;
  atomic_int_fast64_t next;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static _Thread_local int thread_index;
static _Thread_local bool inside;

static void relax(void) {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* ---- how many cores ------------------------------------------------------------------------------------------ */
/* A container's CPU quota, rounded up; 0 if there is none. */
static int quota_cores(void) {
  int cores = 0;
  FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
  if (!f) return 0;
  long long quota, period;
  if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
    long long q = (quota + period - 1) / period;
    cores = q > MAX_THREADS ? MAX_THREADS : (int)q;
  }
  fclose(f);
  return cores;
}

static int available_cores(void) {
  cpu_set_t set;
  int cores = 1;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  int quota = quota_cores();
  if (quota > 0 && quota < cores) cores = quota;
  return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : cores;
}

/* ---- workers ------------------------------------------------------------------------------------------------- */
static void work(chi_task_fn fn, void *ud, int64_t n, int64_t chunk) {
  for (;;) {
    int64_t i = atomic_fetch_add_explicit(&pool.next, chunk, memory_order_relaxed);
    if (i >= n) return;
    int64_t end = n - i < chunk ? n : i + chunk;
    for (; i < end; i++) fn(ud, i);
  }
}

static void *worker_main(void *arg) {
  thread_index = (int)(intptr_t)arg;
  inside = true; /* nested calls run serially */
  chi_fp_begin();
  pthread_mutex_lock(&pool.lock);
  unsigned seen = atomic_load(&pool.generation) - 1; /* a job may already be open */
  for (;;) {
    if (!pool.stop && atomic_load(&pool.generation) == seen) {
      pthread_mutex_unlock(&pool.lock);
      for (int i = 0; i < SPINS_IDLE && atomic_load_explicit(&pool.generation, memory_order_relaxed) == seen; i++)
        relax();
      pthread_mutex_lock(&pool.lock);
    }
    while (!pool.stop && atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    if (pool.stop) break;
    seen = atomic_load(&pool.generation);
    if (!pool.fn) continue;
    chi_task_fn fn = pool.fn;
    void *ud = pool.ud;
    int64_t n = pool.n, chunk = pool.chunk;
    pool.joined++;
    pthread_mutex_unlock(&pool.lock);
    work(fn, ud, n, chunk);
    pthread_mutex_lock(&pool.lock);
    if (atomic_fetch_sub(&pool.joined, 1) == 1) pthread_cond_signal(&pool.done);
  }
  pthread_mutex_unlock(&pool.lock);
  return NULL;
}

/* A forked child has no workers: forget them. */
static void after_fork(void) {
  pthread_mutex_init(&pool.owner, NULL);
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.wake, NULL);
  pthread_cond_init(&pool.done, NULL);
  pool.workers = 0;
  pool.joined = 0;
  pool.fn = NULL;
}

/* With pool.owner held. */
static void start_workers(void) {
  if (!pool.fork_hook) {
    pthread_atfork(NULL, NULL, after_fork);
    pool.fork_hook = true;
  }
  while (pool.workers < pool.width - 1) {
    void *index = (void *)(intptr_t)(pool.workers + 1);
    if (pthread_create(&pool.thread[pool.workers], NULL, worker_main, index) != 0) {
      pool.width = pool.workers + 1; /* the system gives no more: go on with those we have */
      break;
    }
    pool.workers++;
  }
}

static void stop_workers(void) {
  pthread_mutex_lock(&pool.lock);
  pool.stop = true;
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
  for (int i = 0; i < pool.workers; i++) pthread_join(pool.thread[i], NULL);
  pool.workers = 0;
  pool.stop = false;
}

static void run_serial(int64_t n, chi_task_fn fn, void *ud) {
  for (int64_t i = 0; i < n; i++) fn(ud, i);
}

/* With pool.owner held. */
static void run_pool(int64_t n, chi_task_fn fn, void *ud) {
  start_workers();
  pthread_mutex_lock(&pool.lock);
  pool.fn = fn;
  pool.ud = ud;
  pool.n = n;
  pool.chunk = n / ((int64_t)pool.width * 16);
  if (pool.chunk < 1) pool.chunk = 1;
  int64_t chunk = pool.chunk;
  atomic_store(&pool.next, 0);
  atomic_fetch_add(&pool.generation, 1);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
  work(fn, ud, n, chunk);
  pthread_mutex_lock(&pool.lock);
  pool.fn = NULL; /* nobody may join from here on */
  pthread_mutex_unlock(&pool.lock);
  for (int i = 0; i < SPINS_DONE && atomic_load(&pool.joined) > 0; i++) relax();
  pthread_mutex_lock(&pool.lock);
  while (pool.joined > 0) pthread_cond_wait(&pool.done, &pool.lock);
  pthread_mutex_unlock(&pool.lock);
}

void chi_parallel_for(int64_t n, chi_task_fn fn, void *ud) {
  if (n <= 0) return;
  if (inside) {
    run_serial(n, fn, ud);
    return;
  }
  unsigned saved = chi_fp_begin();
  inside = true;
  /* Two threads of the host program at once: the second one works alone. */
  if (n > 1 && pthread_mutex_trylock(&pool.owner) == 0) {
    if (pool.width == 0) pool.width = available_cores();
    if (pool.width > 1) {
      run_pool(n, fn, ud);
    } else {
      run_serial(n, fn, ud);
    }
    pthread_mutex_unlock(&pool.owner);
  } else {
    run_serial(n, fn, ud);
  }
  inside = false;
  chi_fp_end(saved);
}

int chi_threads(void) {
  if (inside) return pool.width > 0 ? pool.width : 1;
  pthread_mutex_lock(&pool.owner);
  if (pool.width == 0) pool.width = available_cores();
  int width = pool.width;
  pthread_mutex_unlock(&pool.owner);
  return width;
}

void chi_set_threads(int n) {
  if (inside) return; /* a running job keeps its width */
  if (n <= 0) n = available_cores();
  if (n > MAX_THREADS) n = MAX_THREADS;
  pthread_mutex_lock(&pool.owner);
  if (n != pool.width) {
    stop_workers();
    pool.width = n;
  }
  pthread_mutex_unlock(&pool.owner);
}

int chi_thread_index(void) { return thread_index; }
