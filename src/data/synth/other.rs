//! Painting of images without a cat: dogs, landscapes and objects.

use super::{
    SceneRng,
    cat::Pose,
    paint::{Canvas, Color, Point, ellipse, hair, mix, shade, smooth},
    scene::color,
};

const INK: Color = [0.08, 0.07, 0.07];
const WHITE: Color = [1.0, 1.0, 1.0];

/// Paints a random scene.
pub fn paint(canvas: &mut Canvas, rng: &mut SceneRng) {
    match rng.0.uniform_int(6) {
        0 => landscape(canvas, rng),
        1 => flower(canvas, rng),
        2 => house(canvas, rng),
        _ => dog(canvas, rng),
    }
}

fn dog(canvas: &mut Canvas, rng: &mut SceneRng) {
    let pose = Pose::new(rng);
    let coat = *rng.pick(&[[0.80, 0.58, 0.32], [0.42, 0.28, 0.20], [0.93, 0.90, 0.84], [0.22, 0.20, 0.20]]);
    let ears = shade(coat, if coat[0] > 0.9 { 0.62 } else { 0.68 });
    let pale = mix(coat, [0.98, 0.94, 0.88], 0.65);
    let fur = |canvas: &mut Canvas, outline: &[Point], c: Color| {
        let mask = canvas.mask(outline);
        canvas.fill(&mask, None, |p, noise| {
            (shade(c, 1.0 + 0.08 * noise.value_at(p[0] * 50.0, p[1] * 24.0) + 0.2 * (0.5 - p[1])), 1.0)
        });
    };
    let chest = smooth(&[[-0.7, 0.3], [0.7, 0.3], [1.1, 1.6], [1.3, 4.0], [-1.3, 4.0], [-1.1, 1.6]]);
    fur(canvas, &pose.project_all(&chest, 0.0), shade(coat, 0.9));
    let head =
        [[0.0, -0.85], [0.5, -0.78], [0.78, -0.4], [0.76, 0.1], [0.55, 0.5], [0.42, 0.95], [0.0, 1.12]];
    let mirrored = head.iter().skip(1).rev().skip(1).map(|&[x, y]| [-x, y]);
    let outline: Vec<Point> = head.iter().copied().chain(mirrored).collect();
    fur(canvas, &pose.project_all(&smooth(&outline), 0.0), coat);
    let hang = rng.range(0.5, 1.0);
    for side in [-1.0, 1.0] {
        let ear =
            [[0.42, -0.76], [0.82, -0.62], [1.12, -0.1], [1.08, hang], [0.86, hang + 0.08], [0.72, 0.1]];
        fur(canvas, &pose.project_all(&smooth(&ear.map(|[x, y]| [side * x, y])), 0.0), ears);
    }
    if rng.0.uniform_int(2) == 0 {
        let blaze = smooth(&[[0.0, -0.7], [0.14, -0.2], [0.2, 0.3], [-0.2, 0.3], [-0.14, -0.2]]);
        fur(canvas, &pose.project_all(&blaze, 0.9), pale);
    }
    if rng.0.uniform_int(2) == 0 {
        let tongue = smooth(&[[-0.16, 0.85], [0.16, 0.85], [0.17, 1.2], [0.0, 1.36], [-0.17, 1.2]]);
        canvas.flat(&pose.project_all(&tongue, 1.0), None, [0.90, 0.45, 0.48], 1.0);
    }
    // A long muzzle with a broad nose, and small round eyes with brows.
    fur(canvas, &ellipse(pose.project([0.0, 0.58], 1.2), [pose.length(0.44), pose.length(0.42)], 0.0), pale);
    for side in [-1.0, 1.0] {
        let smile = hair([0.0, 0.74], [side * 0.18, 0.94], [side * 0.40, 0.76], 0.07);
        canvas.flat(&pose.project_all(&smile, 1.2), None, INK, 0.8);
        let eye = pose.project([side * 0.36, -0.12], 1.0);
        canvas.flat(&ellipse(eye, [pose.length(0.15); 2], 0.0), None, INK, 0.95);
        canvas.flat(&ellipse(eye, [pose.length(0.11); 2], 0.0), None, [0.32, 0.18, 0.09], 1.0);
        canvas.flat(&ellipse(eye, [pose.length(0.06); 2], 0.0), None, INK, 1.0);
        let glint = [eye[0] - pose.length(0.03), eye[1] - pose.length(0.05)];
        canvas.flat(&ellipse(glint, [pose.length(0.04); 2], 0.0), None, WHITE, 0.95);
    }
    canvas.flat(
        &ellipse(pose.project([0.0, 0.36], 1.3), [pose.length(0.2), pose.length(0.145)], 0.0),
        None,
        INK,
        1.0,
    );
    canvas.glow(pose.project([-0.04, 0.31], 1.3), [pose.length(0.11), pose.length(0.06)], None, WHITE, 0.5);
    canvas.flat(&pose.project_all(&hair([0.0, 0.45], [0.0, 0.6], [0.0, 0.78], 0.06), 1.25), None, INK, 0.8);
}

fn landscape(canvas: &mut Canvas, rng: &mut SceneRng) {
    let sky = color(rng.range(0.52, 0.62), rng.range(0.25, 0.6), rng.range(0.8, 1.0));
    let all = canvas.mask(&[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]);
    canvas.fill(&all, None, |p, noise| {
        (mix(sky, WHITE, p[1] + 0.2 * noise.value_at(p[0] * 5.0, p[1] * 9.0)), 1.0)
    });
    let sun = [rng.range(0.15, 0.85), rng.range(0.1, 0.3)];
    canvas.glow(sun, [0.28, 0.28], None, [1.0, 0.9, 0.6], 0.9);
    canvas.flat(&ellipse(sun, [0.06, 0.06], 0.0), None, [1.0, 0.96, 0.8], 1.0);
    for range in 0..3 {
        let level = 0.42 + range as f32 * 0.16;
        let green = mix(
            color(rng.range(0.22, 0.36), 0.6, 0.62 - range as f32 * 0.12),
            sky,
            0.45 - 0.2 * range as f32,
        );
        let mut hills: Vec<Point> =
            (0..6).map(|i| [i as f32 * 0.28 - 0.2, level + rng.range(-0.09, 0.07)]).collect();
        hills.extend([[1.3, 1.3], [-0.3, 1.3]]);
        let mask = canvas.mask(&smooth(&hills));
        canvas.fill(&mask, None, |p, noise| {
            (shade(green, 1.0 + 0.10 * noise.value_at(p[0] * 30.0, p[1] * 40.0)), 1.0)
        });
    }
    for _ in 0..rng.0.uniform_int(5) {
        let [x, y] = [rng.range(0.05, 0.95), rng.range(0.7, 0.9)];
        let tall = rng.range(0.14, 0.26);
        canvas.flat(
            &[[x - 0.012, y - 0.05], [x + 0.012, y - 0.05], [x + 0.012, y], [x - 0.012, y]],
            None,
            [0.3, 0.2, 0.14],
            1.0,
        );
        let crown = [[x, y - tall], [x + tall * 0.35, y - 0.03], [x - tall * 0.35, y - 0.03]];
        canvas.flat(&crown, None, color(0.36, 0.6, rng.range(0.25, 0.42)), 1.0);
    }
}

fn flower(canvas: &mut Canvas, rng: &mut SceneRng) {
    let center = [rng.range(0.42, 0.58), rng.range(0.34, 0.46)];
    let stem = hair([center[0] + rng.range(-0.1, 0.1), 1.1], [center[0], 0.8], center, 0.07);
    let green = color(0.33, 0.65, 0.5);
    canvas.flat(&stem, None, green, 1.0);
    for side in [-1.0, 1.0] {
        let leaf = ellipse([center[0] + side * 0.12, 0.78], [0.13, 0.05], -side * 0.5);
        canvas.flat(&leaf, None, shade(green, 1.0 + side * 0.15), 1.0);
    }
    let petal = color(rng.range(-0.2, 0.16), rng.range(0.4, 0.85), 0.95);
    let (count, turn) = (5 + rng.0.uniform_int(5), rng.range(0.0, 1.0));
    for i in 0..count {
        let angle = turn + i as f32 * std::f32::consts::TAU / count as f32;
        let (sin, cos) = angle.sin_cos();
        let at = [center[0] + cos * 0.17, center[1] + sin * 0.17];
        canvas.flat(&ellipse(at, [0.145, 0.075], angle), None, shade(petal, 0.85 + 0.15 * cos.abs()), 1.0);
    }
    canvas.flat(&ellipse(center, [0.085, 0.085], 0.0), None, [0.55, 0.36, 0.10], 1.0);
    canvas.glow(center, [0.07, 0.07], None, [0.98, 0.80, 0.25], 1.0);
}

fn house(canvas: &mut Canvas, rng: &mut SceneRng) {
    let lawn = color(rng.range(0.24, 0.36), 0.55, 0.55);
    canvas.flat(&[[-0.1, 0.76], [1.1, 0.74], [1.1, 1.1], [-0.1, 1.1]], None, lawn, 1.0);
    let (left, right, eaves) = (rng.range(0.16, 0.26), rng.range(0.74, 0.84), rng.range(0.42, 0.5));
    let wall = color(rng.range(0.0, 1.0), rng.range(0.1, 0.45), rng.range(0.75, 0.98));
    let roof = color(rng.range(-0.05, 0.08), rng.range(0.4, 0.75), rng.range(0.4, 0.7));
    canvas.flat(&[[0.62, 0.12], [0.69, 0.12], [0.69, 0.4], [0.62, 0.4]], None, shade(roof, 0.7), 1.0);
    canvas.flat(&[[left, eaves], [right, eaves], [right, 0.86], [left, 0.86]], None, wall, 1.0);
    canvas.flat(&[[left - 0.07, eaves], [0.5, eaves - 0.28], [right + 0.07, eaves]], None, roof, 1.0);
    canvas.flat(&[[0.44, 0.64], [0.56, 0.64], [0.56, 0.86], [0.44, 0.86]], None, shade(roof, 0.6), 1.0);
    for x in [left + 0.05, right - 0.17] {
        canvas.flat(&[[x, 0.54], [x + 0.12, 0.54], [x + 0.12, 0.68], [x, 0.68]], None, WHITE, 1.0);
        canvas.flat(
            &[[x + 0.015, 0.555], [x + 0.105, 0.555], [x + 0.105, 0.665], [x + 0.015, 0.665]],
            None,
            [0.35, 0.5, 0.65],
            1.0,
        );
    }
}
