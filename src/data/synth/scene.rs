//! Painting of the background and the lighting.

use image::RgbImage;

use super::{
    SceneRng,
    noise::Noise,
    paint::{Canvas, Color, Point, ellipse, mix, shade},
};

/// The color of `hue` in turns, `strength` from gray (0) to pure (1), and `value`, its largest channel.
pub fn color(hue: f32, strength: f32, value: f32) -> Color {
    [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|offset| {
        let distance = ((hue - offset).rem_euclid(1.0) - 0.5).abs();
        value * (1.0 - strength * (1.0 - (distance * 6.0 - 1.0).clamp(0.0, 1.0)))
    })
}

/// Paints a blurred room, garden or wall.
pub fn background(size: u32, rng: &mut SceneRng) -> Canvas {
    let (clouds, texture) = (Noise::new(&mut rng.0), Noise::new(&mut rng.0));
    let wall = color(rng.range(0.0, 1.0), rng.range(0.04, 0.38), rng.range(0.3, 0.95));
    let other = mix(wall, color(rng.range(0.0, 1.0), rng.range(0.06, 0.42), rng.range(0.25, 0.9)), 0.7);
    let slope: Point = [rng.range(-0.6, 0.6), rng.range(-0.6, 0.6)];
    let mut canvas = Canvas::new(size, texture, |p| {
        let cloud = 0.07 * clouds.value_at(p[0] * 4.0, p[1] * 4.0);
        mix(wall, other, 0.5 + slope[0] * (p[0] - 0.5) + slope[1] * (p[1] - 0.5) + cloud)
    });
    match rng.0.uniform_int(4) {
        0 => {
            // A cushion or a table under the animal.
            let (left, right) = (rng.range(0.6, 0.85), rng.range(0.6, 0.85));
            let cloth = color(rng.range(0.0, 1.0), rng.range(0.1, 0.7), rng.range(0.3, 0.9));
            canvas.flat(&[[-0.1, left], [1.1, right], [1.1, 1.1], [-0.1, 1.1]], None, cloth, 1.0);
        }
        1 => {
            // Leaves and lamps in the distance.
            let hue = rng.range(0.0, 1.0);
            for _ in 0..7 {
                let (at, radius) = ([rng.range(0.0, 1.0), rng.range(0.0, 1.0)], rng.range(0.06, 0.16));
                let light = color(hue + rng.range(0.0, 0.15), rng.range(0.2, 0.6), rng.range(0.5, 1.0));
                canvas.flat(&ellipse(at, [radius, radius], 0.0), None, light, rng.range(0.15, 0.5));
            }
        }
        2 => {
            // A window or a curtain.
            let (x, width) = (rng.range(-0.1, 0.7), rng.range(0.2, 0.5));
            let pane = mix(wall, [1.0, 1.0, 0.97], rng.range(0.3, 0.8));
            canvas.flat(&[[x, -0.1], [x + width, -0.1], [x + width, 1.1], [x, 1.1]], None, pane, 0.8);
            canvas.flat(
                &[[x, -0.1], [x + 0.025, -0.1], [x + 0.025, 1.1], [x, 1.1]],
                None,
                shade(wall, 0.6),
                0.7,
            );
        }
        _ => {}
    }
    canvas
}

/// Finishes the image: exposure, the tint of the light, vignetting and a little grain.
pub fn finish_image(canvas: Canvas, rng: &mut SceneRng) -> RgbImage {
    let exposure = rng.range(0.85, 1.12);
    let warmth = rng.normal(0.03).clamp(-0.07, 0.07);
    let corners = rng.range(0.0, 0.5);
    let gain = [exposure * (1.0 + warmth), exposure, exposure * (1.0 - warmth)];
    let grain = Noise::new(&mut rng.0);
    canvas.finish(|p, c| {
        let (dx, dy) = (p[0] - 0.5, p[1] - 0.5);
        let light = 1.0 - corners * (dx * dx + dy * dy);
        let speck = 0.012 * grain.value_at(p[0] * 97.0, p[1] * 89.0);
        [c[0] * gain[0] * light + speck, c[1] * gain[1] * light + speck, c[2] * gain[2] * light + speck]
    })
}
