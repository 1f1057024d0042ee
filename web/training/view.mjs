// What a training looks like. Drawn at most once a frame, and not at all while the tab is hidden.
import { icon, make } from '../shared/dom.mjs'
import { number } from '../shared/i18n.mjs'
import { Buttons } from './buttons.mjs'
import { Figures, LossChart } from './curves.mjs'
import { time } from './format.mjs'
import { Previews } from './previews.mjs'
import { isPoor, outcome, running } from './state.mjs'

const ICONS = { finished: 'check-circle', failed: 'times-circle', cancelled: 'ban', poor: 'exclamation-triangle' }

export class TrainingView {
  // Takes a change of the content and makes room for it.
  room = (change) => change()
  #t
  #training
  #frame = 0
  #phase = make('strong')
  #step = make('span', { class: 'seqlora-number' })
  #told = make('p', { class: 'seqlora-told' })
  #pace = make('span', { class: 'seqlora-number' })
  #left = make('span', { class: 'seqlora-number' })
  #rates = make('div', { class: 'seqlora-row' }, this.#pace, this.#left)
  #news = make('p', { class: 'seqlora-unseen', role: 'status' }) // read out when it changes

  constructor({ t, trainings }) {
    this.#t = t
    const request = () => this.#request()
    this.losses = new LossChart(t)
    this.figures = new Figures(t)
    this.previews = new Previews(t, (image) => trainings.picture(image), request)
    this.buttons = new Buttons(t, trainings, request)
    this.content = make('section', { class: 'seqlora-training', role: 'group' },
      make('header', {}, this.#phase, this.#step), this.#told, this.#rates,
      this.losses.element, this.figures.element, this.previews.element, this.buttons.element, this.#news)
    this.element = make('div', { class: 'seqlora-panel' }, this.content)
  }

  show(training) {
    if (this.#training?.id !== training.id) this.previews.reset()
    this.#training = training
    this.#request()
  }

  #request() {
    if (this.#frame) return
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0
      this.room(() => this.#draw())
    })
  }

  #draw() {
    const training = this.#training
    const name = outcome(training)
    this.content.dataset.phase = isPoor(training) ? 'poor' : training.phase
    this.content.setAttribute('aria-label', this.#t('panel.name', training))
    this.buttons.draw(training)
    this.#drawHead(training, name)
    this.#drawRates(training)
    const marked = this.previews.draw(training)
    this.losses.draw(training, marked)
    this.figures.draw(training)
    const said = this.#t(`panel.news.${name}`, training)
    if (this.#news.textContent !== said) this.#news.textContent = said
  }

  #drawHead(training, name) {
    const { phase, step, steps } = training
    const sign = ICONS[this.content.dataset.phase]
    const { trouble } = this.buttons
    this.#phase.replaceChildren(...(sign ? [icon(sign)] : []), this.#t(`panel.phase.${name}`, training))
    this.#step.textContent = steps ? `${number(step)} / ${number(steps)}` : ''
    this.#told.textContent = trouble || (running(training) ? training.note : this.#outcome(training))
    this.#told.hidden = !this.#told.textContent
    this.#told.classList.toggle('seqlora-bad', Boolean(trouble) || phase === 'failed')
  }

  #drawRates({ phase, rate, left }) {
    this.#rates.hidden = phase !== 'training' || !rate
    this.#pace.textContent = rate ? this.#speed(rate) : ''
    this.#left.textContent = left == null ? '' : this.#t('panel.left', { time: time(left) })
  }

  // How it ended.
  #outcome(training) {
    const { phase, step, steps, keep, note } = training
    if (phase === 'failed') return note
    if (phase === 'cancelled') return this.#t(step ? 'panel.ended.cancelled' : 'panel.ended.undone', { step: number(step) })
    const early = keep && step < steps && this.#t('panel.ended.early', { step: number(step), steps: number(steps) })
    if (isPoor(training)) return [early, note, this.#t('panel.ended.poor', training)].filter(Boolean).join(' ')
    return [this.#t('panel.ended.finished', training), early, note].filter(Boolean).join(' ')
  }

  #speed(rate) {
    if (rate < 0.5) return this.#t('panel.slow', { time: time(1 / rate) })
    return this.#t('panel.rate', { rate: number(rate, { maximumSignificantDigits: 2 }) })
  }
}
