//! Painting of a cat's head and shoulders, back to front.

use super::{
    SceneRng,
    breeds::{Coat, LOOKS, Look, Pattern},
    paint::{Canvas, Color, Mask, Point, ellipse, hair, mix, shade, smooth},
};

const SHADOW: Color = [0.10, 0.07, 0.07];
const WHITE: Color = [1.0, 1.0, 1.0];

/// The position and direction of a head.
///
/// Face coordinates are (across, down), from the middle of the head. Their unit is half its height.
#[derive(Clone, Copy)]
pub struct Pose {
    center: Point,
    scale: f32,
    tilt: (f32, f32),
    turn: f32,
    nod: f32,
}

impl Pose {
    /// A random pose similar to that of a cropped head.
    pub fn new(rng: &mut SceneRng) -> Self {
        Self {
            center: [0.5 + rng.normal(0.03), 0.53 + rng.normal(0.02)],
            scale: rng.range(0.225, 0.285),
            tilt: rng.normal(0.13).clamp(-0.35, 0.35).sin_cos(),
            turn: rng.normal(0.28).clamp(-0.55, 0.55),
            nod: rng.normal(0.07).clamp(-0.15, 0.15),
        }
    }

    /// The position of a point of the face that stands out by `depth`: 0 at the outline, 1 on the face, more on the muzzle.
    pub fn project(&self, [across, down]: Point, depth: f32) -> Point {
        let bulge = (1.0 - across * across).max(0.0).sqrt() * depth * 0.75;
        let x = across * (1.0 - self.turn * self.turn * 0.35) + bulge * self.turn;
        let y = down + depth * self.nod;
        let (sin, cos) = self.tilt;
        [self.center[0] + self.scale * (x * cos - y * sin), self.center[1] + self.scale * (x * sin + y * cos)]
    }

    /// Converts an outline in face coordinates to image units.
    pub fn project_all(&self, outline: &[Point], depth: f32) -> Vec<Point> {
        outline.iter().map(|&p| self.project(p, depth)).collect()
    }

    /// Converts a length in face coordinates to image units.
    pub fn length(&self, length: f32) -> f32 {
        length * self.scale
    }

    /// Converts a position in image units to face coordinates of depth 0.
    fn to_face(self, p: Point) -> Point {
        let (x, y) = ((p[0] - self.center[0]) / self.scale, (p[1] - self.center[1]) / self.scale);
        let (sin, cos) = self.tilt;
        [(x * cos + y * sin) / (1.0 - self.turn * self.turn * 0.35), y * cos - x * sin]
    }
}

/// The direction of the light, across and down; its length is the strength.
pub type Light = Point;

struct Cat<'a> {
    look: &'a Look,
    coat: &'a Coat,
    pose: Pose,
    light: Light,
}

/// Paints a cat of `breed`, an index of [`LOOKS`].
pub fn paint(canvas: &mut Canvas, breed: usize, rng: &mut SceneRng) {
    let look = &LOOKS[breed];
    let pose = Pose::new(rng);
    let light = [rng.range(-0.16, 0.16), rng.range(-0.14, 0.02)];
    let coat = rng.pick(look.coats);
    let cat = Cat { look, coat, pose, light };
    cat.body(canvas, rng);
    for side in [-1.0, 1.0] {
        cat.ear(canvas, side, rng);
    }
    let head = cat.head(canvas, rng);
    cat.markings(canvas, &head, rng);
    cat.muzzle(canvas, &head);
    let iris = *rng.pick(look.irises);
    let (open, pupil) = (rng.range(0.9, 1.08), rng.range(0.22, 0.62));
    for side in [-1.0, 1.0] {
        cat.eye(canvas, side, iris, open, pupil);
    }
    cat.whiskers(canvas, rng);
}

impl Cat<'_> {
    /// Fills `mask` with fur (or skin) of a color by face coordinates, lit and with shading toward the outline.
    fn fur(
        &self,
        canvas: &mut Canvas,
        mask: &Mask,
        within: Option<&Mask>,
        depth: f32,
        color: impl Fn(Point) -> Color,
    ) {
        let (strands, blotches) = match self.look.pattern {
            Pattern::Ticked => (0.16, 0.06),
            Pattern::Bare => (0.02, 0.07),
            _ => (0.07 + 0.2 * self.look.fluff, 0.05),
        };
        canvas.fill(mask, within, |p, noise| {
            let face = self.pose.to_face(p);
            let round = (face[0] * face[0] + face[1] * face[1]) * 0.10 * depth;
            let lit = face[0] * self.light[0] + face[1] * self.light[1];
            let rough = strands * noise.value_at(p[0] * 64.0, p[1] * 28.0)
                + blotches * noise.value_at(p[0] * 9.0, p[1] * 9.0);
            (shade(color(face), 1.04 + lit - round + rough), 1.0)
        });
    }

    /// Paints hairs that stand out of `outline`, away from the middle of the face.
    fn fringe(&self, canvas: &mut Canvas, outline: &[Point], length: f32, color: Color, rng: &mut SceneRng) {
        // Shorter hair lies flat.
        if length < 0.1 {
            return;
        }
        for &[x, y] in outline {
            // Hair is long at the cheeks and short on the skull.
            let long = length * rng.range(0.4, 1.1) * (0.75 + 0.5 * y.clamp(-1.0, 1.0));
            let distance = (x * x + y * y).sqrt().max(0.2);
            let tip = [x + x / distance * long, y + (y / distance + 0.35) * long];
            let root = [x * 0.88, y * 0.88];
            let stroke = hair(root, [x * 1.02, y * 1.02 - 0.2 * long], tip, 0.16);
            let lit = 1.02 + x * self.light[0] + y * self.light[1] - 0.10 * (x * x + y * y).min(1.6)
                + rng.range(-0.08, 0.08);
            canvas.flat(&self.pose.project_all(&stroke, 0.0), None, shade(color, lit), 0.9);
        }
    }

    /// True if only the face, ears and other extremities of the breed are dark.
    fn has_points(&self) -> bool {
        matches!(self.look.pattern, Pattern::Pointed | Pattern::Bicolor)
    }

    fn body(&self, canvas: &mut Canvas, rng: &mut SceneRng) {
        let neck = self.look.neck;
        let (shift, shoulders) = (rng.range(-0.5, 0.5), neck * rng.range(1.35, 1.7) + 0.25);
        let sides = [
            [neck, 0.35],
            [neck * 1.02, 0.9],
            [shoulders, 1.6],
            [shoulders * 1.12, 2.6],
            [shoulders * 0.9, 4.4],
        ];
        let outline: Vec<Point> = (sides.iter().map(|&[x, y]| [x + shift * (y - 0.35) * 0.4, y]))
            .chain(sides.iter().rev().map(|&[x, y]| [shift * (y - 0.35) * 0.4 - x, y]))
            .collect();
        let outline = smooth(&outline);
        let (base, under, mark) = (self.coat.base, self.coat.under, self.coat.mark);
        self.fringe(canvas, &outline, self.look.fluff * 0.9, shade(base, 0.9), rng);
        let body = canvas.mask(&self.pose.project_all(&outline, 0.0));
        self.fur(canvas, &body, None, 0.12, |face| {
            let chest = 1.0 - (face[0] - shift * 0.3).abs() / (neck * 0.9);
            mix(shade(base, 0.92), under, chest.clamp(0.0, 0.75))
        });
        match self.look.pattern {
            Pattern::Spotted => {
                for _ in 0..26 {
                    let at = self.pose.project([rng.range(-2.0, 2.0), rng.range(1.05, 2.4)], 0.0);
                    let size = self.pose.length(rng.range(0.07, 0.13));
                    let spot = ellipse(at, [size, size * rng.range(0.6, 0.9)], rng.range(0.0, 3.0));
                    canvas.flat(&spot, Some(&body), mark, 0.82);
                }
            }
            Pattern::Tabby => {
                for i in 0..6 {
                    let (side, y) = (if i % 2 == 0 { -1.0 } else { 1.0 }, 1.2 + (i / 2) as f32 * 0.42);
                    let band =
                        hair([side * 2.0, y + 0.25], [side * 1.0, y - 0.1], [side * 0.35, y + 0.2], 0.3);
                    canvas.flat(&self.pose.project_all(&band, 0.0), Some(&body), mark, 0.6);
                }
            }
            Pattern::Bare => {
                for i in 0..4 {
                    let y = 1.02 + i as f32 * 0.17;
                    let fold = hair([-0.5, y], [0.0, y + 0.2], [0.5, y - 0.04], 0.07);
                    canvas.flat(&self.pose.project_all(&fold, 0.0), Some(&body), mark, 0.4);
                }
            }
            Pattern::Ticked => self.ticks(canvas, &body, [-1.6, 1.6], [1.0, 2.4], 90, rng),
            _ => {}
        }
        if self.look.fluff > 0.2 {
            // The ruff: long hair that hangs from the cheeks to the chest.
            for i in 0..44 {
                let x = (i as f32 / 43.0 - 0.5) * 2.2 * self.look.width + rng.range(-0.05, 0.05);
                let y = 1.0 - 0.35 * x * x;
                let long = rng.range(0.5, 0.95) * (0.6 + self.look.fluff);
                let lock = hair([x * 0.9, y - 0.2], [x * 1.05, y + 0.3 * long], [x * 1.15, y + long], 0.22);
                let color = mix(under, base, rng.range(0.0, 0.6));
                canvas.flat(
                    &self.pose.project_all(&lock, 0.0),
                    None,
                    shade(color, rng.range(0.86, 1.02)),
                    0.8,
                );
            }
        }
        // The head casts a shadow on the chest.
        let [x, y] = self.pose.project([0.0, 1.0], 0.0);
        canvas.glow([x, y], [self.pose.length(0.95), self.pose.length(0.55)], Some(&body), SHADOW, 0.42);
    }

    fn ear(&self, canvas: &mut Canvas, side: f32, rng: &mut SceneRng) {
        let look = self.look;
        let (middle, skull) = (0.56 * look.width, -0.52);
        // A turned head shows less of its far ear.
        let half = look.ear_base * (1.0 - 0.22 * (self.pose.turn * side).max(0.0));
        let tip = [side * (middle + 0.12 + look.ear_lean), skull - 0.28 - look.ear];
        let inner = [side * (middle - half), skull - 0.12];
        let outer = [side * (middle + half), skull + 0.34];
        let along = |a: Point, b: Point, t: f32, out: f32| {
            [a[0] + (b[0] - a[0]) * t + side * out, a[1] + (b[1] - a[1]) * t]
        };
        let blunt = 0.05 + 0.10 * (1.0 - look.ear).max(0.0);
        let ear =
            |shrink: f32| {
                let center = [side * (middle + 0.06 + look.ear_lean * 0.4), skull - look.ear * 0.25];
                let outline = [
                    inner,
                    along(inner, tip, 0.5, -0.05),
                    [tip[0] - side * blunt, tip[1] + 0.02],
                    [tip[0] + side * blunt * 0.6, tip[1] + 0.05],
                    along(outer, tip, 0.5, 0.07),
                    outer,
                    [side * middle, skull + 0.4],
                ];
                smooth(&outline.map(|p| {
                    [center[0] + (p[0] - center[0]) * shrink, center[1] + (p[1] - center[1]) * shrink]
                }))
            };
        let back = match look.pattern {
            Pattern::Pointed | Pattern::Bicolor => self.coat.mark,
            Pattern::Ticked | Pattern::Tabby => mix(self.coat.base, self.coat.mark, 0.45),
            _ => shade(self.coat.base, 0.92),
        };
        let outer_outline = ear(1.0);
        self.fringe(canvas, &outer_outline, look.fluff * 0.35, back, rng);
        let mask = canvas.mask(&self.pose.project_all(&outer_outline, 0.0));
        self.fur(canvas, &mask, None, 0.3, |_| back);
        let dark = self.coat.base[0] < 0.2;
        let flesh = match look.pattern {
            Pattern::Bare => [0.93, 0.62, 0.58],
            Pattern::Pointed => mix(self.coat.mark, [0.75, 0.5, 0.46], 0.35),
            _ if dark => [0.33, 0.22, 0.23],
            _ => mix(shade(self.coat.base, 0.7), [0.88, 0.60, 0.57], 0.62),
        };
        let shell = canvas.mask(&self.pose.project_all(&ear(0.68), 0.0));
        self.fur(canvas, &shell, None, 0.2, |face| shade(flesh, 0.95 + 0.22 * (face[1] - tip[1])));
        if look.fluff > 0.0 {
            let lock = mix(self.coat.under, flesh, 0.2);
            for i in 0..5 {
                let x = middle - half * 0.7 + i as f32 * half * 0.2;
                let top = [side * (x + 0.12), skull - look.ear * rng.range(0.25, 0.55) - 0.1];
                let lock_shape = hair([side * x, skull + 0.15], [side * x, skull - 0.2], top, 0.12);
                canvas.flat(&self.pose.project_all(&lock_shape, 0.0), Some(&shell), lock, 0.6);
            }
        }
        if look.tufts {
            for i in 0..4 {
                let bend = i as f32 * 0.05 - 0.08;
                let end = [tip[0] + side * (0.04 + bend), tip[1] - rng.range(0.25, 0.4)];
                let tuft = hair([tip[0], tip[1] + 0.1], [tip[0] + bend, tip[1] - 0.05], end, 0.12);
                canvas.flat(&self.pose.project_all(&tuft, 0.0), None, self.coat.mark, 0.85);
            }
        }
    }

    fn head(&self, canvas: &mut Canvas, rng: &mut SceneRng) -> Mask {
        let (w, jaw) = (self.look.width, self.look.jaw);
        let right = [
            [0.46 * w, -0.76],
            [0.84 * w, -0.40],
            [w, 0.08],
            [0.88 * w, 0.50],
            [0.5 * (0.8 * w + jaw), 0.76],
            [jaw * 0.62, 0.95],
        ];
        let mut outline = vec![[0.0, -0.82]];
        outline.extend(right);
        outline.push([0.0, 1.0]);
        outline.extend(right.iter().rev().map(|&[x, y]| [-x, y]));
        let outline = smooth(&outline);
        let (base, under) = (self.coat.base, self.coat.under);
        self.fringe(canvas, &outline, self.look.fluff, mix(base, under, 0.25), rng);
        let head = canvas.mask(&self.pose.project_all(&outline, 0.0));
        self.fur(canvas, &head, None, 1.0, |face| mix(base, under, (face[1] - 0.35) * 0.6));
        head
    }

    /// Paints short hairs of the darker and the lighter color all over a region.
    fn ticks(
        &self,
        canvas: &mut Canvas,
        within: &Mask,
        across: Point,
        down: Point,
        count: usize,
        rng: &mut SceneRng,
    ) {
        for i in 0..count {
            let [x, y] = [rng.range(across[0], across[1]), rng.range(down[0], down[1])];
            let end = [x + x * 0.10, y + 0.14];
            let color = if i % 3 == 0 { self.coat.under } else { self.coat.mark };
            let tick = hair([x, y], [x + x * 0.04, y + 0.07], end, 0.05);
            canvas.flat(&self.pose.project_all(&tick, 0.4), Some(within), color, 0.42);
        }
    }

    /// Paints the lines of tabbies and spotted cats on forehead and cheeks.
    fn lines(&self, canvas: &mut Canvas, head: &Mask, bold: f32, opacity: f32) {
        let mut line = |a: Point, b: Point, c: Point, width: f32| {
            canvas.flat(
                &self.pose.project_all(&hair(a, b, c, width * bold), 0.85),
                Some(head),
                self.coat.mark,
                opacity,
            );
        };
        for side in [-1.0, 1.0] {
            line([side * 0.11, -0.28], [side * 0.10, -0.5], [side * 0.17, -0.86], 0.10);
            line([side * 0.30, -0.34], [side * 0.28, -0.55], [side * 0.38, -0.84], 0.12);
            line([side * 0.52, -0.36], [side * 0.50, -0.5], [side * 0.62, -0.72], 0.11);
            line([side * 0.62, 0.0], [side * 0.85, 0.10], [side * 1.05, 0.02], 0.11);
            line([side * 0.55, 0.20], [side * 0.78, 0.36], [side * 1.02, 0.30], 0.11);
            line([side * 0.52, 0.42], [side * 0.68, 0.58], [side * 0.88, 0.56], 0.09);
        }
    }

    fn markings(&self, canvas: &mut Canvas, head: &Mask, rng: &mut SceneRng) {
        let (pose, mark, under) = (&self.pose, self.coat.mark, self.coat.under);
        match self.look.pattern {
            Pattern::Solid => {
                // A sheen on the forehead. On a dark coat, only this shows the shape.
                let sheen = if self.coat.base[0] < 0.2 { 0.32 } else { 0.2 };
                let at = pose.project([self.light[0] * 2.0, -0.5], 0.7);
                canvas.glow(
                    at,
                    [pose.length(0.6), pose.length(0.34)],
                    Some(head),
                    mix(under, WHITE, 0.4),
                    sheen,
                );
            }
            Pattern::Ticked => {
                self.ticks(canvas, head, [-0.9, 0.9], [-0.8, 0.6], 120, rng);
                self.lines(canvas, head, 0.55, 0.4);
            }
            Pattern::Spotted => {
                self.lines(canvas, head, 1.0, 0.85);
                for _ in 0..7 {
                    let at = pose.project([rng.range(-0.35, 0.35), rng.range(-0.72, -0.45)], 0.9);
                    canvas.flat(
                        &ellipse(at, [pose.length(0.05), pose.length(0.07)], 0.0),
                        Some(head),
                        mark,
                        0.6,
                    );
                }
            }
            Pattern::Tabby => self.lines(canvas, head, 1.5, 0.75),
            Pattern::Pointed => {
                let reach = rng.range(0.92, 1.08);
                let at = |y| pose.project([0.0, y], 0.9);
                canvas.glow(
                    at(0.22),
                    [pose.length(1.02 * reach), pose.length(1.12 * reach)],
                    Some(head),
                    mark,
                    0.97,
                );
                canvas.glow(at(0.38), [pose.length(0.62), pose.length(0.75)], Some(head), mark, 0.9);
            }
            Pattern::Bicolor => {
                for side in [-1.0, 1.0] {
                    let at = pose.project([side * 0.52, -0.22], 0.7);
                    canvas.glow(at, [pose.length(0.78), pose.length(0.95)], Some(head), mark, 1.0);
                }
                let wide = rng.range(0.9, 1.15);
                let right =
                    [[0.05, -0.40], [0.10, -0.05], [0.26 * wide, 0.18], [0.52 * wide, 0.46], [0.5, 0.85]];
                let mut wedge = vec![[0.0, -0.55]];
                wedge.extend(right);
                wedge.push([0.0, 1.1]);
                wedge.extend(right.iter().rev().map(|&[x, y]| [-x, y]));
                let wedge = canvas.mask(&pose.project_all(&smooth(&wedge), 0.95));
                self.fur(canvas, &wedge, Some(head), 0.6, |_| under);
            }
            Pattern::Bare => {
                for i in 0..5 {
                    let (y, wide) = (-0.42 - i as f32 * 0.09, 0.5 - i as f32 * 0.05);
                    let dip = rng.range(0.04, 0.12);
                    for side in [-1.0, 1.0] {
                        let fold = hair(
                            [0.02 * side, y],
                            [side * wide * 0.5, y - dip],
                            [side * wide, y + dip],
                            0.06,
                        );
                        canvas.flat(&pose.project_all(&fold, 0.9), Some(head), mark, 0.55);
                    }
                }
                for side in [-1.0, 1.0] {
                    let fold = hair([side * 0.45, 0.3], [side * 0.62, 0.5], [side * 0.58, 0.75], 0.07);
                    canvas.flat(&pose.project_all(&fold, 0.9), Some(head), mark, 0.5);
                }
            }
        }
    }

    fn muzzle(&self, canvas: &mut Canvas, head: &Mask) {
        let (pose, look) = (&self.pose, self.look);
        let (y, depth) = (look.nose_at, 1.12);
        let pad = match look.pattern {
            Pattern::Pointed => mix(self.coat.mark, self.coat.base, 0.12),
            _ => mix(self.coat.under, self.coat.base, 0.25),
        };
        // The bridge of the nose, lit on one side.
        let bridge = pose.project([0.0, y * 0.4], depth);
        let lit = if self.has_points() { pad } else { shade(pad, 1.05) };
        canvas.glow(bridge, [pose.length(0.24), pose.length(0.45)], Some(head), lit, 0.4);
        let full = 0.20 + 0.12 * look.jaw;
        for side in [-1.0, 1.0] {
            let at = pose.project([side * 0.17, y + 0.17], depth);
            let cheek = canvas.mask(&ellipse(at, [pose.length(full), pose.length(full * 0.82)], 0.0));
            self.fur(canvas, &cheek, Some(head), 0.4, |_| pad);
        }
        let chin = canvas.mask(&ellipse(
            pose.project([0.0, y + 0.38], depth),
            [pose.length(0.17), pose.length(0.13)],
            0.0,
        ));
        self.fur(canvas, &chin, Some(head), 0.4, |_| shade(pad, 0.95));
        let line = if pad[0] < 0.3 { shade(pad, 0.4) } else { mix(shade(pad, 0.4), SHADOW, 0.5) };
        let mut stroke = |a: Point, b: Point, c: Point, width: f32| {
            canvas.flat(&pose.project_all(&hair(a, b, c, width), depth), None, line, 0.8);
        };
        stroke([0.0, y + 0.06], [0.0, y + 0.12], [0.0, y + 0.26], 0.06);
        for side in [-1.0, 1.0] {
            stroke([0.0, y + 0.22], [side * 0.10, y + 0.34], [side * 0.27, y + 0.25], 0.06);
        }
        let tip = [
            [-0.14, y - 0.05],
            [0.0, y - 0.07],
            [0.14, y - 0.05],
            [0.06, y + 0.06],
            [0.0, y + 0.10],
            [-0.06, y + 0.06],
        ];
        canvas.flat(&pose.project_all(&smooth(&tip), depth), None, look.nose, 0.97);
        canvas.glow(
            pose.project([-0.03, y - 0.03], depth),
            [pose.length(0.08), pose.length(0.04)],
            None,
            WHITE,
            0.35,
        );
    }

    fn eye(&self, canvas: &mut Canvas, side: f32, iris: Color, open: f32, pupil: f32) {
        let (pose, look) = (&self.pose, self.look);
        let (rx, ry) = (look.eye, look.eye * look.open * open);
        let center =
            [side * (0.28 + look.eye * 0.62) * (0.6 + 0.4 * look.width), -0.04 + (look.nose_at - 0.4) * 0.2];
        let (sin, cos) = look.slant.sin_cos();
        // Eyes that are not round have pointed corners.
        let point = 1.6 * (1.0 - look.open).max(0.0);
        let lid = |grow: f32| -> Vec<Point> {
            let on = |i: usize| {
                let (s, c) = (i as f32 * std::f32::consts::TAU / 28.0).sin_cos();
                let (x, y) = (c * rx * grow, s * ry * grow * (1.0 - point + point * s.abs()).max(0.2));
                [center[0] + side * (x * cos + y * sin), center[1] + y * cos - x * sin]
            };
            (0..28).map(on).collect()
        };
        let dark = self.coat.base[0] < 0.2 || look.pattern == Pattern::Pointed;
        let around = if dark { self.coat.mark } else { self.coat.under };
        canvas.flat(&pose.project_all(&lid(1.45), 0.95), None, around, if dark { 0.35 } else { 0.45 });
        canvas.flat(&pose.project_all(&lid(1.22), 0.95), None, mix(SHADOW, self.coat.mark, 0.2), 0.92);
        let ball = canvas.mask(&pose.project_all(&lid(1.0), 0.95));
        let middle = pose.project(center, 0.95);
        let height = pose.length(ry);
        canvas.fill(&ball, None, |p, _| {
            // The eyelid shades the top; the bottom is lighter.
            let down = (p[1] - middle[1]) / height;
            (shade(iris, 0.88 + 0.26 * down), 1.0)
        });
        let slit =
            ellipse(middle, [pose.length(rx * pupil), pose.length(ry * (0.55 + 0.45 * pupil.min(0.9)))], 0.0);
        canvas.flat(&slit, Some(&ball), [0.03, 0.03, 0.04], 1.0);
        let glint = [middle[0] + pose.length(rx * (self.light[0].signum() * 0.3)), middle[1] - height * 0.38];
        canvas.flat(&ellipse(glint, [pose.length(rx * 0.22); 2], 0.0), None, WHITE, 0.92);
    }

    fn whiskers(&self, canvas: &mut Canvas, rng: &mut SceneRng) {
        if self.look.pattern == Pattern::Bare {
            return;
        }
        let y = self.look.nose_at + 0.15;
        let light = if self.coat.base[0] < 0.2 { [0.75, 0.75, 0.78] } else { WHITE };
        for side in [-1.0, 1.0] {
            for i in 0..4 {
                let drop = (i as f32 - 1.2) * 0.16;
                let end = [side * rng.range(1.15, 1.45), y + drop * 1.7 + rng.range(-0.06, 0.1)];
                let over = [side * 0.8, y + drop * 0.9 - 0.10];
                let from = [side * 0.26, y + (i as f32 - 1.5) * 0.05];
                canvas.flat(&self.pose.project_all(&hair(from, over, end, 0.045), 0.5), None, light, 0.6);
            }
        }
    }
}
