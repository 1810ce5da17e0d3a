//! Conversion of panics to errors, for code of other libraries that may panic on a malformed file.

use std::{
    any::Any,
    cell::Cell,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    sync::Once,
    thread,
};

use crate::error::excerpt;

thread_local! {
    /// Number of nested calls of [`catch`] on this thread.
    static GUARD_DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Calls `f`, and converts a panic to an error with the panic's message in one line. Nothing is printed.
///
/// Only panics on this thread are silent. If `f` uses rayon, call [`catch_in_pool`]; if it spawns threads, call `catch` on each of
/// them.
///
/// # Errors
/// The message of the panic.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    let guard = ThreadGuard::enter();
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    drop(guard);
    result.map_err(|payload| message(&*payload))
}

/// Calls `f` as [`catch`] does, in a rayon pool whose threads are all guarded.
///
/// # Errors
/// The message of the panic, or the reason why the pool could not be created.
#[cfg_attr(not(feature = "candle-onnx"), allow(dead_code))]
pub fn catch_in_pool<T: Send>(f: impl FnOnce() -> T + Send) -> Result<T, String> {
    use std::sync::OnceLock;

    static POOL: OnceLock<Result<rayon::ThreadPool, String>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let pool = rayon::ThreadPoolBuilder::new().start_handler(|_| std::mem::forget(ThreadGuard::enter()));
        pool.build().map_err(|e| e.to_string())
    });
    let pool = pool.as_ref().map_err(Clone::clone)?;
    catch(|| pool.install(f))
}

/// Marks its thread as guarded until it is dropped.
struct ThreadGuard;

impl ThreadGuard {
    fn enter() -> Self {
        GUARD_DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        GUARD_DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Replaces the panic hook, once, with one that is silent on guarded threads and calls the previous hook on all others.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    // A panicking thread must not change the hook; its own panic is being printed already.
    if thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| panic::set_hook(quiet_hook(panic::take_hook())));
}

type Hook = Box<dyn Fn(&PanicHookInfo) + Sync + Send>;

/// Returns a hook that calls `previous` on threads that are not guarded.
fn quiet_hook(previous: Hook) -> Hook {
    Box::new(move |info| {
        let guarded = GUARD_DEPTH.try_with(Cell::get).unwrap_or(0) > 0;
        if !guarded {
            previous(info);
        }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    excerpt(text.unwrap_or("no message")).into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use rayon::prelude::*;

    use super::*;

    /// A single test, because the hook is global to the process.
    #[test]
    fn panics_become_errors_and_only_unguarded_threads_print_them() {
        let printed = Arc::new(AtomicUsize::new(0));
        let count = printed.clone();
        panic::set_hook(quiet_hook(Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        })));
        assert_eq!(catch(|| 7), Ok(7));
        let zero = std::hint::black_box(0);
        assert_eq!(catch(|| 1 / zero), Err("attempt to divide by zero".into()));
        assert_eq!(catch(|| -> () { panic!("two\nlines {zero}") }), Err("two\\nlines 0".into()));
        assert_eq!(catch(|| -> () { panic::panic_any(3) }), Err("no message".into()));
        // After a caught inner panic the outer call is still guarded.
        let nested = catch(|| {
            let inner = catch(|| -> () { panic!("inner") });
            assert_eq!(inner, Err("inner".into()));
            panic!("outer")
        });
        assert_eq!(nested, Err::<(), _>("outer".into()));
        let pool_result = catch_in_pool(|| {
            (0..100).into_par_iter().for_each(|i| assert!(i != 99, "item {i}"));
        });
        assert_eq!(pool_result, Err("item 99".into()));
        assert_eq!(catch_in_pool(|| (0..100).into_par_iter().sum::<i32>()), Ok(4950));
        assert_eq!(printed.load(Ordering::SeqCst), 0);

        assert!(std::thread::spawn(|| panic!("not guarded")).join().is_err());
        assert!(panic::catch_unwind(|| panic!("not guarded")).is_err());
        assert_eq!(printed.load(Ordering::SeqCst), 2);
    }
}
