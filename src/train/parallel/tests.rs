//! Groups of threads that communicate over pipes as processes do.

use std::{path::Path, path::PathBuf, sync::Arc};

use candle_core::DType;
use serde::{Deserialize, Serialize};
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    Init, Input, Network, Scope, Sizes, TapeOptions,
    candle::Params,
    cost::CostSummary,
    main_output,
    tape::{BatchStatistics, Tape, Var},
};

use super::{follow::follow_loop, *};
use crate::{
    checkpoint::TrainingState,
    train::{
        Batch, BatchSource, Control, Event, LrShape, OptimizerOptions, Schedule, Task, TrainOptions,
        run::state_path, train, train_distributed,
    },
};

/// Process 0 of a group of `size` threads, and the others.
fn group(size: usize) -> Vec<Box<dyn FnOnce() -> ProcessGroup + Send>> {
    let mut ends: Vec<Box<dyn FnOnce() -> ProcessGroup + Send>> = Vec::new();
    let mut pipes = Vec::new();
    for rank in 1..size {
        let [(read, write), (other_read, other_write)] = [(); 2].map(|()| io::pipe().unwrap());
        pipes.push((rank, read, other_write));
        ends.push(Box::new(move || {
            ProcessGroup::new(rank, size, Role::Follower(Connection::new(other_read, write)))
        }));
    }
    let first = move || {
        let peer = |(rank, read, write)| Peer::from_connection(rank, Connection::new(read, write));
        let peers = pipes.into_iter().map(peer).collect();
        ProcessGroup::new(0, size, Role::First { command: Box::new(|_| Command::new("none")), peers })
    };
    ends.insert(0, Box::new(first));
    ends
}

/// Calls `work` in each of `size` processes and returns the results.
fn run_group<R: Send + 'static>(size: usize, work: fn(&mut ProcessGroup) -> R) -> Vec<R> {
    let threads = group(size).into_iter().map(|end| std::thread::spawn(move || work(&mut end())));
    threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// A number for which the sum depends on the order.
fn number(rank: usize, i: usize) -> f32 {
    [1e8, 1.0, -1e8, 0.3][rank % 4] * (1.0 + i as f32 / 7.0)
}

fn tensor(rank: usize, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| number(rank, i)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn make_gradients(rank: usize) -> StepGradients {
    let shapes: [(&str, &[usize]); 4] = [("a", &[3, 5]), ("b", &[1]), ("c", &[2, 3, 1, 7]), ("d", &[])];
    let gradients = shapes.map(|(name, shape)| (name.to_owned(), tensor(rank, shape))).into();
    let statistics_of = |micro: usize| {
        let value = |v: usize| (Tensor::ones(5, DType::F32, &Device::Cpu).unwrap() * v as f64).unwrap();
        BatchStatistics { path: "bn".into(), mean: value(2 * rank + micro), var: value(10 * rank) }
    };
    StepGradients { gradients, statistics: vec![vec![statistics_of(0)], vec![statistics_of(1)]] }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn gradients_are_summed_in_rank_order_with_identical_bits() {
    for size in [2, 3, 4] {
        let all = run_group(size, |group| {
            let (loss, step) =
                group.all_reduce(Ok((group.rank() as f64 + 0.5, make_gradients(group.rank())))).unwrap();
            let gradients = step.gradients.iter();
            let gradients: Vec<_> =
                gradients.map(|(name, g)| (name.clone(), g.dims().to_vec(), bits(g))).collect();
            let [statistics] = &step.statistics[..] else { panic!("one list") };
            let [batch_norm] = &statistics[..] else { panic!("one normalization") };
            (loss, gradients, batch_norm.path.clone(), bits(&batch_norm.mean), bits(&batch_norm.var))
        });
        assert!(all.iter().all(|one| *one == all[0]));
        let (loss, gradients, path, mean, var) = &all[0];
        assert_eq!((*loss, path.as_str()), ((0..size).map(|rank| rank as f64 + 0.5).sum(), "bn"));
        for (name, local) in make_gradients(0).gradients {
            let (_, dims, found) = gradients.iter().find(|(found, ..)| *found == name).unwrap();
            let sum = |i| (1..size).fold(number(0, i), |sum, rank| sum + number(rank, i)).to_bits();
            let expected: Vec<u32> = (0..local.elem_count()).map(sum).collect();
            assert_eq!((&dims[..], found), (local.dims(), &expected), "{name}");
        }
        // The mean over two micro-batches of each process.
        let ranks = (size - 1) as f32 / 2.0;
        for (found, expected) in [(mean, 2.0 * ranks + 0.5), (var, 10.0 * ranks)] {
            assert!(found.iter().all(|&v| (f32::from_bits(v) - expected).abs() < 1e-5), "{found:?}");
        }
    }
}

#[test]
fn out_of_memory_in_one_process_is_reported_by_all() {
    for (size, ends) in [
        (
            2,
            run_group(2, |group| {
                [false, true, true].map(|ok| all_reduce_fails(group, ok || group.rank() != 0))
            }),
        ),
        (
            3,
            run_group(3, |group| {
                [false, true, false].map(|ok| all_reduce_fails(group, ok || group.rank() != 2))
            }),
        ),
    ] {
        assert_eq!(ends, vec![ends[0]; size]);
        assert_eq!(ends[0][..2], [Some(true), None]);
    }

    /// True if memory was too small; `None` without an error.
    fn all_reduce_fails(group: &mut ProcessGroup, ok: bool) -> Option<bool> {
        let limited = Error::Candle(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into()));
        let local = if ok { Ok((1.0, make_gradients(group.rank()))) } else { Err(limited) };
        group.all_reduce(local).err().map(|error| error.is_out_of_memory())
    }
}

#[test]
fn process_0_reports_why_a_process_ended() {
    // An error message, a closed pipe, and bytes that are no message.
    type Last = fn(&mut ProcessGroup);
    let send_error: Last = |group| {
        let Role::Follower(connection) = &mut group.role else { return };
        connection
            .send(&Message::Failed { transient: false, message: "x.png: not an image".into() })
            .unwrap();
    };
    let send_unexpected: Last = |group| {
        let Role::Follower(connection) = &mut group.role else { return };
        connection.send(&Message::Ready).unwrap();
    };
    let close: Last = |_| {};
    for (behavior, expected, transient) in [
        (send_error, "process 1 of this run: x.png: not an image", false),
        (close, "process 1 of this run: exited unexpectedly (", true),
        (send_unexpected, "process 1 of this run: sent an unexpected message", true),
    ] {
        let mut ends = group(2).into_iter();
        let (first, other) = (ends.next().unwrap(), ends.next().unwrap());
        let other = std::thread::spawn(move || behavior(&mut other()));
        let error = first().all_reduce(Ok((1.0, make_gradients(0)))).err().unwrap();
        other.join().unwrap();
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!((error.is_transient(), error.is_out_of_memory()), (transient, false));
    }
    // Rows of different lengths cannot be summed.
    let ends = run_group(2, |group| {
        let mut local = make_gradients(group.rank());
        if group.rank() == 1 {
            local.gradients.remove("a");
        }
        group.all_reduce(Ok((1.0, local))).err().unwrap().is_transient()
    });
    assert_eq!(ends, [true, true]);
}

/// Trains a 4 × 4 matrix, in micro-batches that may be too large for memory.
struct Rows {
    max_rows: usize,
}

struct Numbers;

impl BatchSource for Numbers {
    fn items(&self) -> usize {
        64
    }

    fn batch(&self, position: u64, len: usize) -> Result<Batch> {
        let numbers = (4 * position..4 * (position + len as u64)).map(|i| (i * 7 % 11) as f32 / 11.0);
        Ok(Batch(vec![Tensor::from_iter(numbers, &Device::Cpu)?.reshape((len, 4))?]))
    }

    fn files(&self, _: u64, _: usize) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// A network of one matrix, whose kind is not registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Matrix {}

impl Network for Matrix {
    const KIND: &'static str = "matrix";
    type Built<T: tiny_cats_models::Tensor> = T::Param;

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("x", [4])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["y".into()]
    }

    fn build<T: tiny_cats_models::Tensor>(&self, scope: &mut Scope<T>) -> tiny_cats_models::Result<T::Param> {
        scope.matrix("weight", [4, 4], Init::Normal(0.5))
    }

    fn forward<T: tiny_cats_models::Tensor>(
        weight: &T::Param,
        inputs: &[T],
    ) -> tiny_cats_models::Result<Vec<T>> {
        Ok(vec![inputs[0].linear(weight, None)?])
    }
}

impl Task for Rows {
    fn kind(&self) -> &'static str {
        "rows"
    }

    fn release_name(&self) -> String {
        "rows".into()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(CostSummary { params: Matrix {}.specs()?, ..CostSummary::default() })
    }

    fn training_bytes(&self, _: usize, _: TapeOptions) -> Result<u64> {
        Ok(0)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        Arc::new(Numbers)
    }

    fn settings(&self) -> Value {
        Value::Null
    }

    fn meta(&self) -> ModelMeta {
        ModelMeta::for_network(Matrix {}, Sizes::new(), Vec::new()).unwrap()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [x] = batch.to_device(&Device::Cpu)?;
        let len = x.dim(0)?;
        if len > self.max_rows {
            return Err(Error::Candle(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into())));
        }
        let weight = Matrix {}.build(&mut Scope::root(&mut tape.params(params)))?;
        let target = Tensor::ones((len, 4), DType::F32, &Device::Cpu)?;
        let ones = Tensor::ones(len, DType::F32, &Device::Cpu)?;
        let output = main_output(Matrix::forward(&weight, &[tape.constant(x)])?)?;
        Ok(output.weighted_mse(&target, &ones)?)
    }
}

fn options(folder: &Path, batch: usize, accumulation: usize) -> TrainOptions {
    TrainOptions {
        folder: folder.to_owned(),
        from: None,
        schedule: Schedule::new(LrShape::Cosine, 1e-2, 0.0, None, 10, 20).unwrap(),
        optimizer: OptimizerOptions { ema: vec![0.9], ..OptimizerOptions::default() },
        batch,
        accumulation,
        halvings: 0,
        tape: TapeOptions::default(),
        workers: 0,
        save_interval: 5,
        sample_interval: 0,
        log_interval: 1,
        early_stopping: None,
        max_skipped_steps: 3,
        seed: 0,
        configuration: String::new(),
        device: Device::Cpu,
        control: Control::default(),
    }
}

/// If one process has memory for three of eight rows, all halve their micro-batches; the step stays the same.
#[test]
fn processes_halve_their_micro_batches_together() {
    let weights = |folder: &Path| {
        let state = TrainingState::load(&state_path(folder, "rows", 20)).unwrap();
        state.weights["weight"].clone()
    };
    let alone = tempfile::tempdir().unwrap();
    train(&mut Rows { max_rows: 99 }, &options(alone.path(), 2, 8), &mut |_| {}).unwrap();
    for limited in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), 16, 1);
        let max_rows = move |rank| if rank == limited { 3 } else { 99 };
        let mut ends = group(2).into_iter();
        let (first, other) = (ends.next().unwrap(), ends.next().unwrap());
        let other = std::thread::spawn({
            let options = options.clone();
            move || follow_loop(&mut Rows { max_rows: max_rows(1) }, &options, &mut other())
        });
        let mut notes = Vec::new();
        let observe = &mut |event: Event| {
            if let Event::Note(note) = event {
                notes.push(note.to_owned());
            }
        };
        train_distributed(&mut Rows { max_rows: max_rows(0) }, &options, &mut first(), observe).unwrap();
        other.join().unwrap().unwrap();
        let halved = "out of memory: continuing with";
        assert_eq!(notes[1..], [4, 8].map(|n| format!("{halved} {n} micro-batches of {} per step", 16 / n)));
        for (a, b) in weights(alone.path()).data().iter().zip(weights(folder.path()).data()) {
            assert!((a - b).abs() < 1e-6, "{a} and {b}");
        }
    }
}
