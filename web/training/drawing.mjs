// Curves as inline SVG. A drawing is 1000 x 100 whatever the size of its element; strokes do not scale.
const SVG = 'http://www.w3.org/2000/svg'

export function svg(tag, traits = {}, ...inside) {
  const element = document.createElementNS(SVG, tag)
  for (const [name, value] of Object.entries(traits)) element.setAttribute(name, value)
  element.append(...inside)
  return element
}

export const drawing = (label, ...inside) =>
  svg('svg', { viewBox: '0 0 1000 100', preserveAspectRatio: 'none', role: 'img', 'aria-label': label }, ...inside)

// A path through [[x, y], ...] for x in 0..width and y in low..high; what lies outside is clamped.
export function path(points, width, low, high) {
  const across = 1000 / (width || 1), up = 100 / (high - low || 1)
  return points.map(([x, y], i) => {
    const height = 100 - Math.min(100, Math.max(0, (y - low) * up))
    return `${i ? 'L' : 'M'}${(x * across).toFixed(1)} ${height.toFixed(1)}`
  }).join('')
}

// [low, high] that holds all of `must` and most of `may`, so that a few outliers do not flatten a curve.
export function range(must, may) {
  const sorted = [...may].sort((a, b) => a - b)
  const at = (part) => sorted[Math.round(part * (sorted.length - 1))]
  const low = Math.min(at(0.02), ...must), high = Math.max(at(0.98), ...must)
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1
  return [low - margin, high + margin]
}
