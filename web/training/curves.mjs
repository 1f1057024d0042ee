// The loss of a training, and its figures, as small charts.
import { make } from '../shared/dom.mjs'
import { number } from '../shared/i18n.mjs'
import { drawing, path, range, svg } from './drawing.mjs'
import { short } from './format.mjs'
import { smoothed } from './state.mjs'

const FIGURES = ['orthogonality', 'crosstalk']

export class LossChart {
  #t
  #raw = svg('path', { class: 'seqlora-raw' })
  #smooth = svg('path', { class: 'seqlora-smooth' })
  #marker = svg('path', { class: 'seqlora-marker' })
  #chart = drawing('', this.#marker, this.#raw, this.#smooth)
  #high = make('span', { class: 'seqlora-high' })
  #low = make('span', { class: 'seqlora-low' })
  #now = make('span', { class: 'seqlora-number' })

  constructor(t) {
    this.#t = t
    this.element = make('div', { class: 'seqlora-losses' },
      make('div', { class: 'seqlora-row' }, t('panel.loss'), this.#now),
      make('div', { class: 'seqlora-chart' }, this.#chart, this.#high, this.#low))
  }

  // `marked`: a step at which a line is drawn, or null.
  draw({ losses, steps }, marked) {
    this.element.hidden = !losses.length
    if (!losses.length) return
    const means = smoothed(losses, steps)
    const [bottom, top] = range(means.map(([, mean]) => mean), losses.map(([, value]) => value))
    const [step, mean] = means.at(-1)
    this.#raw.setAttribute('d', path(losses, steps, bottom, top))
    this.#smooth.setAttribute('d', path(means, steps, bottom, top))
    this.#marker.setAttribute('d', marked === null ? '' : path([[marked, 0], [marked, 1]], steps, 0, 1))
    this.#high.textContent = short(top)
    this.#low.textContent = short(Math.max(0, bottom))
    this.#now.textContent = short(mean)
    const told = { loss: short(mean), first: short(means[0][1]), step: number(step) }
    this.#chart.setAttribute('aria-label', this.#t('panel.chart', told))
  }
}

// Each with its name, its last value and how it went.
export class Figures {
  constructor(t) {
    this.figures = FIGURES.map((name) => new Figure(t, name))
    this.element = make('dl', { class: 'seqlora-figures' }, this.figures.map(({ element }) => element))
  }

  draw({ figures, steps }) {
    this.element.hidden = !figures.length
    for (const figure of this.figures) figure.draw(figures, steps)
  }
}

class Figure {
  #name
  #value = make('dd', { class: 'seqlora-number' })
  #line = svg('path', { class: 'seqlora-trend' })

  constructor(t, name) {
    this.#name = name
    const trend = drawing('', this.#line)
    trend.setAttribute('aria-hidden', 'true')
    this.element = make('div', { title: t(`panel.${name}.hint`) }, make('dt', {}, t(`panel.${name}.name`)), this.#value, trend)
  }

  draw(figures, steps) {
    const points = figures.filter((one) => one[this.#name] != null).map((one) => [one.step, one[this.#name]])
    this.element.hidden = !points.length
    if (!points.length) return
    const [, now] = points.at(-1)
    this.#value.textContent = this.#name === 'crosstalk'
      ? number(now, { style: 'percent', maximumSignificantDigits: 2 })
      : number(now, now && now < 1e-3 ? { notation: 'scientific', maximumSignificantDigits: 1 } : { maximumSignificantDigits: 2 })
    const top = Math.max(...points.map(([, value]) => value))
    this.#line.setAttribute('d', path(points, steps, 0, top * 1.1 || 1))
  }
}
