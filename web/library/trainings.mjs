// In the tab: the trainings of this server, whatever workflow or machine asked for them; those that run are open.
import { make } from '../shared/dom.mjs'
import { outcome, running } from '../training/state.mjs'
import { openTrainings } from '../training/trainings.mjs'
import { TrainingView } from '../training/view.mjs'

const MOST = 6 // that are shown; the last ones

export class TrainingList {
  #t
  #trainings
  #shown = new Map() // id -> { item, summary, view }
  #list = make('ul', { class: 'seqlora-trainings' })

  constructor({ api, t }) {
    this.#t = t
    this.#trainings = openTrainings({ api, t })
    this.element = make('section', { 'aria-label': t('library.trainings'), hidden: true }, this.#list)
    this.#trainings.onChange((training) => this.#show(training))
  }

  #show(training) {
    const known = this.#shown.get(training.id) ?? this.#add(training)
    known.summary.textContent = this.#t(`panel.phase.${outcome(training)}`, training)
    known.view.show(training)
    const last = new Set(this.#trainings.all().slice(-MOST).map(({ id }) => id))
    for (const [id, { item }] of this.#shown) {
      if (last.has(id)) continue
      this.#shown.delete(id)
      item.remove()
    }
    this.element.hidden = !this.#shown.size
  }

  #add(training) {
    const view = new TrainingView({ t: this.#t, trainings: this.#trainings })
    const summary = make('summary')
    const item = make('li', {}, make('details', { open: running(training) }, summary, view.element))
    const made = { item, summary, view }
    this.#shown.set(training.id, made)
    this.#list.prepend(item)
    return made
  }
}
