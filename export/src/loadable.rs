//! The networks that the runtimes of this build can load.

use tiny_cats_models::Network;

/// A network that the native runtime can run on several threads. Every [`Network`] whose layers consist of parameters and plain data is one.
#[cfg(feature = "native")]
pub trait NativeNetwork: Network<Built<tiny_cats_models::native::Value>: Send + Sync> {}
#[cfg(feature = "native")]
impl<N: Network<Built<tiny_cats_models::native::Value>: Send + Sync>> NativeNetwork for N {}
/// A network that the native runtime can run on several threads; this build lacks the runtime.
#[cfg(not(feature = "native"))]
pub trait NativeNetwork: Network {}
#[cfg(not(feature = "native"))]
impl<N: Network> NativeNetwork for N {}

/// A network that the candle runtime can run on another thread. Every [`Network`] whose layers consist of parameters and plain data is one.
#[cfg(feature = "candle")]
pub trait CandleNetwork: Network<Built<tiny_cats_models::candle::CandleValue>: Send> {}
#[cfg(feature = "candle")]
impl<N: Network<Built<tiny_cats_models::candle::CandleValue>: Send>> CandleNetwork for N {}
/// A network that the candle runtime can run on another thread; this build lacks the runtime.
#[cfg(not(feature = "candle"))]
pub trait CandleNetwork: Network {}
#[cfg(not(feature = "candle"))]
impl<N: Network> CandleNetwork for N {}

/// A network that all runtimes of this build can load. Every [`Network`] whose layers consist of parameters and plain data is one.
pub trait LoadableNetwork: NativeNetwork + CandleNetwork {}
impl<N: NativeNetwork + CandleNetwork> LoadableNetwork for N {}
