// On Apply Composed SeqLoRA, under the text: the library's concepts by their pictures. They show what the text selects and edit
// it; the text is all there is, nothing else is saved.
import { make } from '../shared/dom.mjs'
import { addElement, forwardToCanvas } from '../shared/dom_widget.mjs'
import { allNodes, libraryOf } from '../shared/find_library.mjs'
import { APPLY } from '../shared/kinds.mjs'
import { openShelf } from '../shared/libraries.mjs'
import { change, parse } from './selection.mjs'

// In pixels, at least: a row of tiles and a few lines of text. More is a matter of the node's size.
const HEIGHT = 190
const TEXT_HEIGHT = 90
const MOST = 100 // strengths, up and down

export function picker({ app, api, t }) {
  const shelf = openShelf(api)
  const pickers = new WeakMap() // by node

  function refreshAll() {
    for (const node of allNodes(app)) pickers.get(node)?.refresh()
  }

  return {
    setup() {
      api.addEventListener('graphChanged', refreshAll)
      shelf.onChange(refreshAll)
    },
    nodeCreated(node) {
      if (node.comfyClass === APPLY) pickers.set(node, new Picker(node, { app, t, shelf }))
    },
    afterConfigureGraph: refreshAll
  }
}

class Picker {
  #tiles = new Map() // by concept
  #lastOn = new Map() // concept -> its strength when it was last on
  #shown = '' // the answer that the tiles were made of
  #turn = 0
  #app
  #t
  #shelf
  #node
  #text // the widget

  constructor(node, { app, t, shelf }) {
    this.#app = app
    this.#t = t
    this.#shelf = shelf
    this.#node = node
    this.#text = node.widgets.find(({ name }) => name === 'concepts')
    this.status = make('p', { class: 'seqlora-picker-status', role: 'status' })
    this.list = make('ul', { class: 'seqlora-tiles' })
    this.element = make('div', { class: 'seqlora-picker', 'data-capture-wheel': 'true' }, this.status, this.list)
    this.list.addEventListener('wheel', (event) => this.#scroll(event))
    forwardToCanvas(this.element, this.#app)
    addElement(node, 'picker', this.element, { getMinHeight: () => HEIGHT })
    this.#text.options.getMinHeight = () => TEXT_HEIGHT // else the tiles would leave it a line and a half
    node.expandToFitContent()
    this.#follow(this.#text, 'callback', () => this.#showSelection())
    this.#follow(node, 'onConnectionsChange', () => queueMicrotask(() => this.refresh()))
    this.#say(this.#t('picker.connect'))
  }

  // Looks anew at what is connected, at the library and at the text.
  async refresh() {
    const turn = ++this.#turn
    const name = this.#node.graph ? libraryOf(this.#app, this.#node) : null
    let hint = name === null ? this.#t('picker.connect') : this.#t('picker.unknown')
    let library = /** @type {any} */ (null)
    try {
      if (name) library = await this.#shelf.library(name)
      if (library && !library.concepts.length) hint = this.#t('picker.empty', { library: name })
    } catch (error) {
      hint = error.status === 404 ? this.#t('picker.missing', { library: name }) : error.message
    }
    if (turn !== this.#turn) return
    this.#makeTiles(library)
    if (this.#tiles.size) this.#showSelection()
    else this.#say(hint)
  }

  #makeTiles(library) {
    const answer = JSON.stringify(library)
    if (answer === this.#shown) return
    this.#shown = answer
    const had = [...this.#tiles].find(([, { item }]) => item.contains(document.activeElement))?.[0]
    this.#tiles = new Map((library?.concepts ?? []).map((concept) => [concept.name, this.#tile(library.name, concept)]))
    this.list.replaceChildren(...[...this.#tiles.values()].map(({ item }) => item))
    this.#tiles.get(had)?.button.focus()
  }

  #tile(library, concept) {
    const { name, trigger, class_word: kind } = concept
    const label = make('span', { class: 'seqlora-tile-name' }, name)
    const button = make('button', {
      type: 'button', class: 'seqlora-tile', title: `${name}\n${trigger} ${kind}`.trim(), 'aria-pressed': 'false',
      onclick: () => this.#set(name, this.#on(name) ? 0 : this.#lastOn.get(name) ?? (this.#selection().all || 1))
    }, this.#shelf.picture(library, concept), label)
    const strength = make('input', {
      type: 'number', class: 'seqlora-strength', min: -MOST, max: MOST, step: 0.05,
      'aria-label': this.#t('picker.strength', { concept: name }),
      onchange: () => this.#set(name, Math.min(MOST, Math.max(-MOST, strength.valueAsNumber)))
    })
    return { item: make('li', {}, button, strength), button, strength }
  }

  #showSelection() {
    if (!this.#tiles.size) return
    const { on, auto, problem } = this.#selection()
    const elsewhere = this.#node.inputs.some(({ name, link }) => name === 'concepts' && link != null)
    for (const [name, { button, strength }] of this.#tiles) {
      const is = on.get(name) ?? 0
      if (is) this.#lastOn.set(name, is)
      button.setAttribute('aria-pressed', String(!elsewhere && is !== 0))
      button.disabled = strength.disabled = elsewhere
      strength.hidden = elsewhere || !is
      strength.value = String(is)
    }
    if (elsewhere) this.#say(this.#t('picker.elsewhere'))
    else if (problem) this.#say(this.#t(`picker.problem.${problem.what}`, problem), true)
    else this.#say(this.#t(auto ? 'picker.auto' : 'picker.on', { on: on.size, of: this.#tiles.size }))
  }

  #set(name, strength) {
    if (Number.isNaN(strength)) return this.#showSelection() // as it was
    this.#app.canvas.emitBeforeChange() // one step for undo
    this.#text.value = change(this.#text.value, [...this.#tiles.keys()], name, strength)
    this.#app.canvas.emitAfterChange()
    this.#showSelection()
  }

  #on(name) {
    return this.#selection().on.get(name)
  }

  #selection() {
    return parse(String(this.#text.value), [...this.#tiles.keys()])
  }

  #say(sentence, isProblem = false) {
    if (this.status.textContent !== sentence) this.status.textContent = sentence // said aloud once
    this.status.classList.toggle('seqlora-problem', isProblem)
    this.element.classList.toggle('seqlora-empty', !this.#tiles.size)
  }

  // The wheel is the canvas's where there is nothing to scroll.
  #scroll(event) {
    if (!event.ctrlKey && this.list.scrollHeight > this.list.clientHeight) event.stopPropagation()
  }

  #follow(owner, hook, act) {
    const before = owner[hook]
    owner[hook] = function (...given) {
      const result = before?.apply(this, given)
      act()
      return result
    }
  }
}
