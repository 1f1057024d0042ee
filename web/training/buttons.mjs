// Stop and keep, and cancel: what was asked for, and what came of it.
import { icon, make } from '../shared/dom.mjs'
import { running } from './state.mjs'

export class Buttons {
  trouble = '' // the sentence of what went wrong
  #t
  #asked = ''
  #training
  #keep
  #cancel

  constructor(t, trainings, onChange) {
    this.#t = t
    const ask = async (name) => {
      this.#asked = name
      this.trouble = ''
      onChange()
      this.trouble = await trainings[name](this.#training).catch((error) => error.message)
      if (this.trouble) this.#asked = ''
      onChange()
    }
    this.#keep = button(t, 'keep', 'check', ask)
    this.#cancel = button(t, 'cancel', 'times', ask)
    this.element = make('div', { class: 'seqlora-buttons' }, this.#keep, this.#cancel)
  }

  draw(training) {
    if (this.#training?.id !== training.id) this.#asked = this.trouble = ''
    this.#training = training
    this.element.hidden = !running(training)
    this.#keep.disabled = training.phase !== 'training' || !training.step || Boolean(this.#asked) || training.keep
    this.#cancel.disabled = this.#asked === 'cancel'
    this.#say(this.#keep, 'keep', this.#asked === 'keep' || training.keep)
    this.#say(this.#cancel, 'cancel', this.#asked === 'cancel')
  }

  #say(element, name, isBusy) {
    element.lastChild.textContent = this.#t(`panel.${name}.${isBusy ? 'busy' : 'do'}`)
  }
}

function button(t, name, sign, ask) {
  return /** @type {HTMLButtonElement} */ (
    make('button', { type: 'button', title: t(`panel.${name}.hint`), onclick: () => ask(name) }, icon(sign), make('span')))
}
