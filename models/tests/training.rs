//! Whole networks on the tape: its options change what a step takes, not what it learns.
#![cfg(feature = "candle")]

mod common;

use candle_core::Tensor;
use common::Case;
use tiny_cats_models::{Head, Layout, Network, ResNetConfig, TapeOptions, TinyDitConfig};

/// A small one of every kind.
fn cases() -> Vec<Case> {
    let dit = |layout| TinyDitConfig {
        image_size: 16,
        patch_size: 4,
        width: 32,
        depth: 3,
        heads: 4,
        mlp_width: 64,
        classes: 5,
        layout,
    };
    let resnet = |depth| ResNetConfig { depth, width: 8, classes: 5, head: Head::Plain, batch_norm: true };
    vec![
        Case::new(Network::TinyDit(dit(Layout::Modern)), 16, 4),
        Case::new(Network::TinyDit(dit(Layout::Legacy)), 16, 4),
        Case::new(Network::ResNet(resnet(18)), 64, 4),
        Case::new(Network::ResNet(resnet(50)), 64, 4),
    ]
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_block_that_is_computed_again_gives_the_same_bit_for_bit() {
    for mut case in cases() {
        let (loss, statistics, gradients) = case.step(TapeOptions::default(), 1.0);
        let (again, seen, found) = case.step(TapeOptions { checkpoint: true }, 1.0);
        let name = format!("{:?}", case.network);
        assert_eq!(loss.to_bits(), again.to_bits(), "{name}");
        assert_eq!(statistics.len(), seen.len(), "{name}");
        for (a, b) in statistics.iter().zip(&seen) {
            assert_eq!((&a.path, bits(&a.mean), bits(&a.var)), (&b.path, bits(&b.mean), bits(&b.var)));
        }
        assert!(gradients.keys().eq(found.keys()), "{name}");
        for (parameter, gradient) in gradients {
            assert!(values(&gradient).iter().any(|v| *v != 0.0), "{name}: {parameter} is not learnt");
            assert_eq!(bits(&gradient), bits(&found[&parameter]), "{name}: {parameter}");
        }
    }
}
