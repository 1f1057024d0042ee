// What a training looks like. Drawn at most once a frame, and not at all while the tab is hidden.
import { drawing, path, range, svg } from './chart.mjs'
import { icon, make } from '../shared/dom.mjs'
import { running, smoothed } from './state.mjs'
import { number } from '../shared/i18n.mjs'

const ICONS = { finished: 'check-circle', failed: 'times-circle', cancelled: 'ban' }

// keep(training) and cancel(training) promise the sentence of what went wrong; picture(image) is its address.
export function trainingView({ t, keep, cancel, picture }) {
  let training, latest = true, asked = '', trouble = '', waiting = 0

  const phase = make('strong')
  const step = make('span', { class: 'seqlora-number' })
  const head = make('header', {}, phase, step)
  const pace = make('span', { class: 'seqlora-number' })
  const left = make('span', { class: 'seqlora-number' })
  const told = make('p', { class: 'seqlora-told' })
  const news = make('p', { class: 'seqlora-unseen', role: 'status' }) // read out when it changes

  const raw = svg('path', { class: 'seqlora-raw' })
  const smooth = svg('path', { class: 'seqlora-smooth' })
  const marker = svg('path', { class: 'seqlora-marker' })
  const chart = drawing('', marker, raw, smooth)
  const high = make('span', { class: 'seqlora-high' }), low = make('span', { class: 'seqlora-low' })
  const loss = make('span', { class: 'seqlora-number' })
  const losses = make('div', { class: 'seqlora-losses' }, make('div', { class: 'seqlora-row' }, t('panel.loss'), loss),
    make('div', { class: 'seqlora-chart' }, chart, high, low))

  const measures = ['orthogonality', 'crosstalk'].map((name) => measure(name, t))
  const figures = make('dl', { class: 'seqlora-figures' }, measures.map((one) => one.element))

  const pictures = make('div', { class: 'seqlora-pictures' })
  const slider = make('input', { type: 'range', min: 0, step: 1, 'aria-label': t('panel.previews'), oninput: () => {
    latest = slider.value === slider.max
    request()
  } })
  const which = make('span', { class: 'seqlora-number' }), cost = make('span', { class: 'seqlora-number' })
  const previews = make('div', { class: 'seqlora-previews' }, pictures, slider, make('div', { class: 'seqlora-row' }, which, cost))

  const stop = button('keep', 'check', keep)
  const end = button('cancel', 'times', cancel)
  const buttons = make('div', { class: 'seqlora-buttons' }, stop, end)

  const rates = make('div', { class: 'seqlora-row' }, pace, left)
  const content = make('section', { class: 'seqlora-training', role: 'group' },
    head, told, rates, losses, figures, previews, buttons, news)
  const element = make('div', { class: 'seqlora-panel' }, content)

  function button(name, sign, act) {
    const text = make('span')
    const made = make('button', { type: 'button', title: t(`panel.${name}.hint`), onclick: async () => {
      asked = name
      trouble = ''
      request()
      trouble = await act(training).catch((error) => error.message)
      if (trouble) asked = ''
      request()
    } }, icon(sign), text)
    made.say = (busy) => { text.textContent = t(`panel.${name}.${busy ? 'busy' : 'do'}`) }
    return made
  }

  function request() {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0
      fit(draw)
    })
  }

  let fit
  function show(state, room) {
    if (training?.id !== state.id) [latest, asked, trouble] = [true, '', '']
    training = state
    fit = room
    request()
  }

  function draw() {
    const { losses: curve, steps } = training
    const alive = running(training)
    const trains = training.phase === 'training'
    content.dataset.phase = training.phase
    content.setAttribute('aria-label', t('panel.name', training))
    const name = training.phase === 'finished' && training.keep ? 'kept' : training.phase
    phase.replaceChildren(...(ICONS[training.phase] ? [icon(ICONS[training.phase])] : []), t(`panel.phase.${name}`, training))
    step.textContent = steps ? `${number(training.step)} / ${number(steps)}` : ''
    told.textContent = trouble || (alive ? training.note : outcome(training))
    told.hidden = !told.textContent
    told.classList.toggle('seqlora-bad', Boolean(trouble) || training.phase === 'failed')
    const said = t(`panel.news.${name}`, training)
    if (news.textContent !== said) news.textContent = said

    rates.hidden = !trains || !training.rate
    pace.textContent = training.rate ? speed(training.rate) : ''
    left.textContent = training.left == null ? '' : t('panel.left', { time: time(training.left) })

    losses.hidden = !curve.length
    if (curve.length) drawLosses(curve, steps)
    figures.hidden = !training.figures.length
    for (const one of measures) one.draw(training.figures, steps)
    previews.hidden = !training.previews.length
    if (training.previews.length) drawPreviews()

    buttons.hidden = !alive
    const keeping = asked === 'keep' || training.keep
    stop.disabled = !trains || !training.step || Boolean(asked) || training.keep
    end.disabled = asked === 'cancel'
    stop.say(keeping)
    end.say(asked === 'cancel')
  }

  function drawLosses(curve, steps) {
    const means = smoothed(curve, steps)
    const [bottom, top] = range(means.map(([, mean]) => mean), curve.map(([, value]) => value))
    const now = short(means.at(-1)[1])
    raw.setAttribute('d', path(curve, steps, bottom, top))
    smooth.setAttribute('d', path(means, steps, bottom, top))
    high.textContent = short(top)
    low.textContent = short(Math.max(0, bottom))
    loss.textContent = now
    chart.setAttribute('aria-label', t('panel.chart', { loss: now, first: short(means[0][1]), step: number(means.at(-1)[0]) }))
  }

  function drawPreviews() {
    const all = training.previews
    slider.max = all.length - 1
    if (latest) slider.value = slider.max
    const { step: at, seconds, pictures: taken } = all[slider.value]
    slider.hidden = all.length < 2
    which.textContent = t('panel.preview', { step: number(at), time: time(seconds) })
    cost.textContent = all.length < 2 ? '' : t('panel.cost', { time: time(training.preview_seconds) })
    slider.setAttribute('aria-valuetext', which.textContent)
    marker.setAttribute('d', latest ? '' : path([[at, 0], [at, 1]], training.steps, 0, 1))
    while (pictures.children.length > taken.length) pictures.lastChild.remove()
    taken.forEach((one, i) => {
      const figure = pictures.children[i] ?? pictures.appendChild(
        make('figure', {}, make('img', { draggable: 'false' }), make('figcaption')))
      const [image, caption] = figure.children
      const address = picture(one.image)
      if (image.getAttribute('src') !== address) image.src = address
      image.alt = t('panel.picture', { ...one, step: number(at) })
      image.title = one.prompt
      caption.textContent = one.concept
    })
  }

  // How it ended.
  function outcome({ phase, step, steps, keep, note }) {
    if (phase === 'failed') return note
    if (phase === 'cancelled') return t(step ? 'panel.ended.cancelled' : 'panel.ended.undone', { step: number(step) })
    const early = keep && step < steps && t('panel.ended.early', { step: number(step), steps: number(steps) })
    return [t('panel.ended.finished', training), early, note].filter(Boolean).join(' ')
  }

  function speed(rate) {
    return rate < 0.5 ? t('panel.slow', { time: time(1 / rate) }) : t('panel.rate', { rate: number(rate, { maximumSignificantDigits: 2 }) })
  }

  return { element, show }
}

// A figure, how it went, and its name.
function measure(name, t) {
  const value = make('dd', { class: 'seqlora-number' })
  const line = svg('path', { class: 'seqlora-trend' })
  const trend = drawing('', line)
  trend.setAttribute('aria-hidden', 'true')
  const element = make('div', { title: t(`panel.${name}.hint`) }, make('dt', {}, t(`panel.${name}.name`)), value, trend)

  function draw(figures, steps) {
    const points = figures.filter((one) => one[name] != null).map((one) => [one.step, one[name]])
    element.hidden = !points.length
    if (!points.length) return
    const [, now] = points.at(-1)
    value.textContent = name === 'crosstalk'
      ? number(now, { style: 'percent', maximumSignificantDigits: 2 })
      : number(now, now && now < 1e-3 ? { notation: 'scientific', maximumSignificantDigits: 1 } : { maximumSignificantDigits: 2 })
    const top = Math.max(...points.map(([, y]) => y))
    line.setAttribute('d', path(points, steps, 0, top * 1.1 || 1))
  }

  return { element, draw }
}

const short = (value) => number(value, { maximumSignificantDigits: 3 })

// Seconds as people say them: "1.9s", "48s", "12m 5s", "1h 3m".
function time(seconds) {
  const part = (value, unit, options) => number(value, { style: 'unit', unit, unitDisplay: 'narrow', ...options })
  if (seconds < 10) return part(seconds, 'second', { maximumFractionDigits: 1 })
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60)
  if (hours) return `${part(hours, 'hour')} ${part(minutes % 60, 'minute')}`
  return minutes ? `${part(minutes, 'minute')} ${part(whole % 60, 'second')}` : part(whole, 'second')
}
