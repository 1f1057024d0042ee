// The trainings that the server tells of, kept up to date. One for all parts of the editor.
import { followed, running } from './state.mjs'

/** @type {Trainings | undefined} */
let trainings

export function openTrainings({ api, t }) {
  trainings ??= new Trainings(api, t)
  return trainings
}

class Trainings {
  #api
  #t
  #isReady = false // the host warns of an event that nobody listens for, and its socket opens before the set-up
  #known = new Map() // the last one of each node, by workflow and node; the one last begun is the last
  #listeners = new Set()

  constructor(api, t) {
    this.#api = api
    this.#t = t
    api.addEventListener('seqlora.training', ({ detail }) => { if (this.#isReady) this.#take(detail, false) })
    api.addEventListener('reconnected', () => this.#catchUp())
  }

  async start() {
    this.#isReady = true
    await this.#catchUp()
  }

  all() {
    return [...this.#known.values()]
  }

  // Calls `listener(training, hasEnded)` whenever something is new; `hasEnded` once, where its end came as news.
  onChange(listener) {
    this.#listeners.add(listener)
  }

  // Files the concept as it is. Answers the sentence of what went wrong, or ''.
  async keep(training) {
    const answer = await this.#api.fetchApi(`/seqlora/train/${encodeURIComponent(training.node)}/keep`, { method: 'POST' })
    return answer.ok ? '' : (await answer.json()).error
  }

  async cancel() {
    await this.#api.interrupt(null)
    return ''
  }

  // The address of a preview.
  picture(image) {
    return this.#api.apiURL(`/view?${new URLSearchParams(image)}`)
  }

  // `isWhole`: the state with its whole history, as asked for; otherwise an event, with what is new.
  #take(told, isWhole) {
    const place = `${told.workflow} ${told.node}`
    const known = this.#known.get(place)
    const before = known?.id === told.id ? known : null
    const now = followed(before, told, isWhole)
    now.concept ||= this.#t('panel.unnamed') // what it is called was not said, which is why it failed
    if (!before) this.#known.delete(place) // a new one goes to the end
    this.#known.set(place, now)
    const hasEnded = !running(now) && (before ? running(before) : !isWhole)
    for (const listener of this.#listeners) listener(now, hasEnded)
    if (!isWhole && !before && told.phase !== 'starting') this.#catchUp() // its beginning was told to others
  }

  async #catchUp() {
    const answer = await this.#api.fetchApi('/seqlora/training')
    if (!answer.ok) return
    for (const told of (await answer.json()).trainings) this.#take(told, true)
  }
}
